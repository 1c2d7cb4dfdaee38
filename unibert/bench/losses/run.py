"""``unibert bench kernels``: UniBERT's losses and their peers.

``results.json``::

    format         2
    environment    device, cores, versions of Python and packages, those of the peers included
    config         the options, without the folder
    matmul_tflops  the device's peak for square products in this run: bf16 on CUDA, fp32 on the CPU
    rows           one object for each case and provider: the case's fields, then
      provider, side (ours for UniBERT, peer), setting (fixed, default, tuned), option (chosen by tuning)
      status         ran; or not run, out of memory, failed, with ``why`` instead of figures
      forward_ms, backward_ms, both_ms      medians; on CUDA with _p20 and _p80, on the CPU with _min
      peak_bytes     peak memory without the inputs; workspace_bytes: without the gradients too
      reference_loss, loss_error (nats), hidden_gradient_error, weight_gradient_error (relative, against float64 over
      ``error_rows`` rows), accurate (false: rounding does not explain the errors)
      share_of_peak  minimum flops (6 N H V for the MLM head) over both_ms, as a share of matmul_tflops

``results.csv`` holds the rows and ``results.png`` plots them, unless ``tables`` is false.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unibert.bench.losses.case import Case
from unibert.bench.losses.config import KernelBenchConfig
from unibert.bench.losses.providers import providers_of
from unibert.bench.losses.results import COLUMNS, show_results
from unibert.bench.losses.worker import EXIT_DEVICE_LOST, Job
from unibert.bench.result_files import FORMAT, write_results
from unibert.configuration import to_dict
from unibert.environment import describe_environment, package_versions
from unibert.errors import UserError

PEERS = ("liger-kernel", "cut-cross-entropy")
ERROR_ROWS = {"cpu": 128, "cuda": 9830}
TIME_IS_UP = "the time given was used up"
POLL_SECONDS = 0.2
"""Interval at which a worker's rows are read."""

Row = dict[str, Any]


def bench_kernels(config: KernelBenchConfig) -> dict[str, Any]:
    """Measure all cases, print tables and goals, and write the results after every row.

    Returns:
        the content of results.json.

    Raises:
        UserError: if no provider matches ``providers``, or the folder cannot be written.
    """
    device, cases = config.resolved_device, config.cases()
    names = [_provider_names(case.loss, config.providers_for(case)) for case in cases]
    if not any(names):
        losses = dict.fromkeys(case.loss for case in cases)
        available = ", ".join(provider.name for loss in losses for provider in providers_of(loss))
        words = ", ".join(config.providers or [])
        raise UserError(f"providers: no provider matches {words}; available are {available}")
    environment = describe_environment()
    environment["peers"] = package_versions(PEERS)
    folder = config.output or Path("docs/benchmarks") / f"kernels-{_slug(str(environment['device']), device)}"
    end = time.monotonic() + 60 * (config.minutes or float("inf"))
    results: dict[str, Any] = {
        "format": FORMAT,
        "environment": environment,
        "config": {key: value for key, value in to_dict(config).items() if key != "output"},
        "matmul_tflops": _matmul_peak(device, config.resolved_threads),
        "rows": [],
    }
    for number, (case, case_names) in enumerate(zip(cases, names, strict=True), start=1):
        print(f"[{number}/{len(cases)}] {case}", flush=True)
        earlier = list(results["rows"])

        def complete(row: Row, case: Case = case) -> Row:
            if row["status"] == "ran" and case.floor_flops:
                row = row | {"share_of_peak": case.floor_flops / row["both_ms"] / 1e9 / results["matmul_tflops"]}
            return case.to_json() | row

        def on_row(row: Row) -> None:
            results["rows"].append(complete(row))
            print(f"  {_progress(row)}", flush=True)
            write_results(results, folder, COLUMNS, tables=config.tables)

        final = list(_measure(case, case_names, device, config, end, on_row))
        # Now in the providers' order, and on a CPU with the memory, which is measured last.
        results["rows"] = earlier + [complete(row) for row in final]
        write_results(results, folder, COLUMNS, tables=config.tables)
    show_results(results, folder, draw=config.tables)
    return results


def _provider_names(loss: Any, words: Sequence[str] | None) -> list[str]:
    names = [provider.name for provider in providers_of(loss)]
    return names if words is None else [name for name in names if any(word in name for word in words)]


def _slug(name: str, device: str) -> str:
    if device == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _progress(row: Row) -> str:
    if row["status"] != "ran":
        return f"{row['provider']}: {row['status']}: {row['why']}"
    option = f" ({row['option']})" if row["option"] else ""
    return f"{row['provider']}{option}: {row['both_ms']:.2f} ms"


def _matmul_peak(device: str, threads: int) -> float:
    rows, _, reason = _run_worker(Job(task="matmul", device=device, threads=threads), 300.0)
    if not rows:
        raise UserError(f"the device's matmul peak could not be measured: {reason}")
    peak: float = rows[0]["tflops"]
    print(f"matmul peak {peak:.3g} TFLOP/s", flush=True)
    return peak


def _measure(
    case: Case, names: list[str], device: str, config: KernelBenchConfig, end: float, on_row: Callable[[Row], None]
) -> Iterator[Row]:
    """Rows of one case in the providers' order; workers are started until each provider has a row.

    ``on_row`` receives each row as soon as it is known.
    """
    rows: dict[str, Row] = {}

    def add(row: Row) -> None:
        rows[row["provider"]] = row
        on_row(row)

    while missing := [name for name in names if name not in rows]:
        seconds = end - time.monotonic()
        if seconds <= 0:
            for name in missing:
                add(_unmeasured_row(case, name, TIME_IS_UP))
            break
        job = Job(
            task="case",
            case=case.to_json(),
            providers=missing,
            device=device,
            threads=config.resolved_threads,
            repeats=config.repeats,
            error_rows=ERROR_ROWS[device],
            seconds=min(seconds, 1e9),
        )
        _, last_started, reason = _run_worker(job, seconds + config.grace_seconds, add)
        if reason:
            # On the CPU all rows come at the end; the others start again without the provider that ended the process.
            failed = last_started if last_started in missing and last_started not in rows else missing[0]
            if failed not in rows:
                add(_unmeasured_row(case, failed, reason, "not run" if reason == TIME_IS_UP else "failed"))
    if device == "cpu" and config.memory:
        for row in rows.values():
            if row["status"] == "ran" and time.monotonic() < end:
                job = Job(
                    task="memory",
                    case=case.to_json(),
                    providers=[row["provider"]],
                    threads=config.resolved_threads,
                    option=row["option"],
                )
                memory, _, _ = _run_worker(job, end - time.monotonic() + config.grace_seconds)
                row |= memory[0] if memory else {}
    yield from (rows[name] for name in names)


def _unmeasured_row(case: Case, name: str, why: str, status: str = "not run") -> Row:
    (provider,) = (each for each in providers_of(case.loss) if each.name == name)
    return {"provider": name, "side": provider.side, "setting": provider.setting, "status": status, "why": why}


def _run_worker(
    job: Job, seconds: float, on_row: Callable[[Row], None] = lambda row: None
) -> tuple[list[Row], str, str]:
    """Run a worker; ``on_row`` receives each row as soon as it is written.

    Returns:
        its rows, the provider that it started last, and the reason why it ended early, "" if it did not.
    """
    with tempfile.TemporaryDirectory(prefix="unibert-bench-") as name:
        folder = Path(name)
        job_file, rows_file, log = folder / "job.json", folder / "rows.jsonl", folder / "log"
        job_file.write_text(job.to_json(), encoding="utf-8")
        rows_file.touch()
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
        rows: list[Row] = []
        last_started = ""
        with log.open("w") as stream, rows_file.open(encoding="utf-8") as reader:

            def read_rows() -> None:
                nonlocal last_started
                while True:
                    position = reader.tell()
                    line = reader.readline()
                    if not line.endswith("\n"):  # the line is not complete yet
                        reader.seek(position)
                        return
                    record = json.loads(line)
                    if "started" in record:
                        last_started = record["started"]
                    else:
                        rows.append(record)
                        on_row(record)

            process = subprocess.Popen(
                [sys.executable, "-m", "unibert.bench.losses.worker", str(job_file), str(rows_file)],
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
            end = time.monotonic() + max(1.0, seconds)
            try:
                while (code := process.poll()) is None and time.monotonic() < end:
                    time.sleep(POLL_SECONDS)
                    read_rows()
            finally:
                process.kill()
                process.wait()
            read_rows()
        if code == 0:
            return rows, last_started, ""
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last_line = lines[-1] if lines else "it left no message"
        if code is None:
            return rows, last_started, TIME_IS_UP
        if code == EXIT_DEVICE_LOST:
            return rows, last_started, "the CUDA context broke"
        return rows, last_started, f"its process ended with {code}: {last_line}"
