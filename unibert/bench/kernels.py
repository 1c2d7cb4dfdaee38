"""``unibert bench kernels``: our losses beside their peers.

``results.json``::

    format         1
    environment    device, cores, Python and package versions, of the peers too
    config         the options as given, all but the folder
    matmul_tflops  the device's square-product peak in this run: bf16 on CUDA, fp32 on the CPU
    rows           one object a case and contestant: the case's fields, then
      contestant, side (ours, peer), setting (fixed, default, tuned), option (what tuning chose)
      status         ran; not run, out of memory, failed: then ``why`` instead of figures
      forward_ms, backward_ms, both_ms      medians; on CUDA with _p20 and _p80, on the CPU with _min
      peak_bytes     peak memory over the inputs; workspace_bytes: the same less the gradients
      reference_loss, loss_error (nats), hidden_gradient_error, weight_gradient_error (relative, against float64 over
      ``error_rows`` rows), accurate (false: errors beyond what rounding explains)
      share_of_peak  the floor's flops (6 N H V for the MLM head) over both_ms, as a share of matmul_tflops

``results.csv`` holds the rows, ``results.png`` draws them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unibert.bench.case import Case
from unibert.bench.config import KernelBenchConfig
from unibert.bench.contestants import contestants_of
from unibert.bench.result_files import show_results, write_results
from unibert.bench.worker import EXIT_DEVICE_LOST, Job
from unibert.configuration import to_dict
from unibert.environment import describe_environment
from unibert.errors import UserError

PEERS = ("liger-kernel", "cut-cross-entropy")
ERROR_ROWS = {"cpu": 128, "cuda": 9830}
GRACE_SECONDS = 60.0
"""What a worker may take beyond its time to end the contestant that it is at."""

Row = dict[str, Any]


def bench_kernels(config: KernelBenchConfig) -> dict[str, Any]:
    """Measure all cases, print table and verdict, write the results (after every case, so that a stop loses one).

    Returns:
        the content of results.json.

    Raises:
        UserError: if no contestant has a name that was asked for, or the folder cannot be written.
    """
    device, cases = config.resolved_device, config.cases()
    names = {loss: _chosen(loss, config.contestants) for loss in dict.fromkeys(case.loss for case in cases)}
    if not any(names.values()):
        every = ", ".join(contestant.name for loss in names for contestant in contestants_of(loss))
        raise UserError(f"contestants: nobody is called {', '.join(config.contestants or [])}; there are {every}")
    environment = describe_environment()
    environment["peers"] = {package: found for package in PEERS if (found := _version(package))}
    folder = config.output or Path("docs/benchmarks") / f"kernels-{_slug(str(environment['device']), device)}"
    end = time.monotonic() + 60 * (config.minutes or float("inf"))
    results: dict[str, Any] = {
        "format": 1,
        "environment": environment,
        "config": {key: value for key, value in to_dict(config).items() if key != "output"},
        "matmul_tflops": _matmul_peak(device, config.threads),
        "rows": [],
    }
    for number, case in enumerate(cases, start=1):
        print(f"[{number}/{len(cases)}] {case}", flush=True)
        for row in _measure(case, names[case.loss], device, config, end):
            if row["status"] == "ran" and case.floor_flops:
                row["share_of_peak"] = case.floor_flops / row["both_ms"] / 1e9 / results["matmul_tflops"]
            results["rows"].append(case.to_json() | row)
            print(f"  {_progress(row)}", flush=True)
        write_results(results, folder)
    show_results(results, folder)
    return results


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _chosen(loss: Any, words: Sequence[str] | None) -> list[str]:
    names = [contestant.name for contestant in contestants_of(loss)]
    return names if words is None else [name for name in names if any(word in name for word in words)]


def _slug(name: str, device: str) -> str:
    if device == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _progress(row: Row) -> str:
    if row["status"] != "ran":
        return f"{row['contestant']}: {row['status']}: {row['why']}"
    option = f" ({row['option']})" if row["option"] else ""
    return f"{row['contestant']}{option}: {row['both_ms']:.2f} ms"


def _matmul_peak(device: str, threads: int) -> float:
    rows, _, complaint = _work(Job(task="matmul", device=device, threads=threads), 300.0)
    if not rows:
        raise UserError(f"the device's matmul peak could not be measured: {complaint}")
    peak: float = rows[0]["tflops"]
    print(f"matmul peak {peak:.3g} TFLOP/s", flush=True)
    return peak


def _measure(case: Case, names: list[str], device: str, config: KernelBenchConfig, end: float) -> Iterator[Row]:
    """Rows of one case in the contestants' order, worker after worker until each contestant has one."""
    rows: dict[str, Row] = {}
    while missing := [name for name in names if name not in rows]:
        seconds = end - time.monotonic()
        if seconds <= 0:
            rows |= {name: _missed(case, name, "the time given was used up") for name in missing}
            break
        job = Job(
            task="case", case=case.to_json(), contestants=missing, device=device, threads=config.threads,
            repeats=config.repeats, error_rows=ERROR_ROWS[device], seconds=min(seconds, 1e9),
        )  # fmt: skip
        found, culprit, complaint = _work(job, seconds + GRACE_SECONDS)
        rows |= {row["contestant"]: row for row in found}
        if complaint:
            # On the CPU rows come last, in turns: without the one that ended the process the others start again.
            blamed = culprit if culprit in missing and culprit not in rows else missing[0]
            if blamed not in rows:
                rows[blamed] = _missed(case, blamed, complaint, status="failed")
    if device == "cpu" and config.memory:
        for row in rows.values():
            if row["status"] == "ran" and time.monotonic() < end:
                job = Job(
                    task="memory", case=case.to_json(), contestants=[row["contestant"]], threads=config.threads,
                    option=row["option"],
                )  # fmt: skip
                found, _, _ = _work(job, end - time.monotonic() + GRACE_SECONDS)
                row |= found[0] if found else {}
    yield from (rows[name] for name in names)


def _missed(case: Case, name: str, why: str, status: str = "not run") -> Row:
    (contestant,) = (each for each in contestants_of(case.loss) if each.name == name)
    return {
        "contestant": name, "side": contestant.side, "setting": contestant.setting, "status": status, "why": why
    }  # fmt: skip


def _work(job: Job, seconds: float) -> tuple[list[Row], str, str]:
    """Run a worker: its rows, the contestant that it came to last, and why it ended early ("" if it didn't)."""
    with tempfile.TemporaryDirectory(prefix="unibert-bench-") as name:
        folder = Path(name)
        job_file, rows_file, log = folder / "job.json", folder / "rows.jsonl", folder / "log"
        job_file.write_text(job.to_json(), encoding="utf-8")
        rows_file.touch()
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "unibert.bench.worker", str(job_file), str(rows_file)],
                stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=environment,
            )  # fmt: skip
            try:
                code = process.wait(timeout=None if seconds == float("inf") else max(1.0, seconds))
            except subprocess.TimeoutExpired:
                code = None
            finally:
                process.kill()
                process.wait()
        rows, culprit = [], ""
        for line in rows_file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if "started" in record:
                culprit = record["started"]
            else:
                rows.append(record)
        if code == 0:
            return rows, culprit, ""
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1] if lines else "it left no message"
        if code is None:
            return rows, culprit, "the time given was used up"
        if code == EXIT_DEVICE_LOST:
            return rows, culprit, "the CUDA context broke"
        return rows, culprit, f"its process ended with {code}: {last}"
