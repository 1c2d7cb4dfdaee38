"""``unibert bench kernels``: our losses beside their peers.

``results.json``::

    format         2
    environment    device, cores, Python and package versions, of the peers too
    config         the options as given, all but the folder
    matmul_tflops  the device's square-product peak in this run: bf16 on CUDA, fp32 on the CPU
    rows           one object a case and provider: the case's fields, then
      provider, side (ours, peer), setting (fixed, default, tuned), option (what tuning chose)
      status         ran; not run, out of memory, failed: then ``why`` instead of figures
      forward_ms, backward_ms, both_ms      medians; on CUDA with _p20 and _p80, on the CPU with _min
      peak_bytes     peak memory over the inputs; workspace_bytes: the same less the gradients
      reference_loss, loss_error (nats), hidden_gradient_error, weight_gradient_error (relative, against float64 over
      ``error_rows`` rows), accurate (false: errors beyond what rounding explains)
      share_of_peak  the floor's flops (6 N H V for the MLM head) over both_ms, as a share of matmul_tflops

``results.csv`` holds the rows, ``results.png`` draws them, unless ``tables`` is false.
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
"""How often a worker's rows are looked for."""

Row = dict[str, Any]


def bench_kernels(config: KernelBenchConfig) -> dict[str, Any]:
    """Measure all cases, print table and verdict, write the results (with every row, so that a stop loses one).

    Returns:
        the content of results.json.

    Raises:
        UserError: if no provider has a name that was asked for, or the folder cannot be written.
    """
    device, cases = config.resolved_device, config.cases()
    names = [_chosen(case.loss, config.providers_for(case)) for case in cases]
    if not any(names):
        losses = dict.fromkeys(case.loss for case in cases)
        every = ", ".join(provider.name for loss in losses for provider in providers_of(loss))
        raise UserError(f"providers: nobody is called {', '.join(config.providers or [])}; there are {every}")
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
    for number, (case, chosen) in enumerate(zip(cases, names, strict=True), start=1):
        print(f"[{number}/{len(cases)}] {case}", flush=True)
        earlier = list(results["rows"])

        def whole(row: Row, case: Case = case) -> Row:
            if row["status"] == "ran" and case.floor_flops:
                row = row | {"share_of_peak": case.floor_flops / row["both_ms"] / 1e9 / results["matmul_tflops"]}
            return case.to_json() | row

        def heard(row: Row) -> None:
            results["rows"].append(whole(row))
            print(f"  {_progress(row)}", flush=True)
            write_results(results, folder, COLUMNS, tables=config.tables)

        final = list(_measure(case, chosen, device, config, end, heard))
        # In the providers' order, and with the memory that is measured last on a CPU.
        results["rows"] = earlier + [whole(row) for row in final]
        write_results(results, folder, COLUMNS, tables=config.tables)
    show_results(results, folder, draw=config.tables)
    return results


def _chosen(loss: Any, words: Sequence[str] | None) -> list[str]:
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
    rows, _, complaint = _work(Job(task="matmul", device=device, threads=threads), 300.0)
    if not rows:
        raise UserError(f"the device's matmul peak could not be measured: {complaint}")
    peak: float = rows[0]["tflops"]
    print(f"matmul peak {peak:.3g} TFLOP/s", flush=True)
    return peak


def _measure(
    case: Case, names: list[str], device: str, config: KernelBenchConfig, end: float, heard: Callable[[Row], None]
) -> Iterator[Row]:
    """Rows of one case in the providers' order, worker after worker until each provider has one.

    ``heard`` gets each as soon as it is known.
    """
    rows: dict[str, Row] = {}

    def take(row: Row) -> None:
        rows[row["provider"]] = row
        heard(row)

    while missing := [name for name in names if name not in rows]:
        seconds = end - time.monotonic()
        if seconds <= 0:
            for name in missing:
                take(_missed(case, name, TIME_IS_UP))
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
        _, culprit, complaint = _work(job, seconds + config.grace_seconds, take)
        if complaint:
            # On the CPU rows come last, in turns: without the one that ended the process the others start again.
            blamed = culprit if culprit in missing and culprit not in rows else missing[0]
            if blamed not in rows:
                take(_missed(case, blamed, complaint, "not run" if complaint == TIME_IS_UP else "failed"))
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
                found, _, _ = _work(job, end - time.monotonic() + config.grace_seconds)
                row |= found[0] if found else {}
    yield from (rows[name] for name in names)


def _missed(case: Case, name: str, why: str, status: str = "not run") -> Row:
    (provider,) = (each for each in providers_of(case.loss) if each.name == name)
    return {"provider": name, "side": provider.side, "setting": provider.setting, "status": status, "why": why}


def _work(job: Job, seconds: float, heard: Callable[[Row], None] = lambda row: None) -> tuple[list[Row], str, str]:
    """Run a worker: its rows, the provider that it came to last, and why it ended early ("" if it didn't).

    ``heard`` gets each row as soon as it is written.
    """
    with tempfile.TemporaryDirectory(prefix="unibert-bench-") as name:
        folder = Path(name)
        job_file, rows_file, log = folder / "job.json", folder / "rows.jsonl", folder / "log"
        job_file.write_text(job.to_json(), encoding="utf-8")
        rows_file.touch()
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
        rows: list[Row] = []
        culprit = ""
        with log.open("w") as stream, rows_file.open(encoding="utf-8") as written:

            def listen() -> None:
                nonlocal culprit
                while True:
                    here = written.tell()
                    line = written.readline()
                    if not line.endswith("\n"):  # the rest is still to come
                        written.seek(here)
                        return
                    record = json.loads(line)
                    if "started" in record:
                        culprit = record["started"]
                    else:
                        rows.append(record)
                        heard(record)

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
                    listen()
            finally:
                process.kill()
                process.wait()
            listen()
        if code == 0:
            return rows, culprit, ""
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1] if lines else "it left no message"
        if code is None:
            return rows, culprit, TIME_IS_UP
        if code == EXIT_DEVICE_LOST:
            return rows, culprit, "the CUDA context broke"
        return rows, culprit, f"its process ended with {code}: {last}"
