"""Jobs of a benchmark in processes of their own, since their libraries and memory would affect the next ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unibert.errors import UserError
from unibert.training.freed_memory import ENVIRONMENT

Row = dict[str, Any]


def run_worker(module: str, job: Mapping[str, Any], *, keeps_memory: bool = False, gpu: int | None = None) -> Row:
    """Run ``python -m MODULE JOB.json RESULT.json`` with one thread and return its result.

    If the process dies, return {"status": "failed", "why": …}.

    Args:
        module: what to run.
        job: content of JOB.json.
        keeps_memory: whether it is started as `unibert pretrain` is, for `unibert.training.freed_memory`.
        gpu: number of the only GPU that it sees. Default: all.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    environment |= {"OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1", **(ENVIRONMENT if keeps_memory else {})}
    if gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[gpu] if visible else str(gpu)
    with tempfile.TemporaryDirectory(prefix="unibert-bench-") as name:
        job_file, result_file, log = (Path(name) / part for part in ("job.json", "result.json", "log"))
        job_file.write_text(json.dumps(job), encoding="utf-8")
        with log.open("w") as stream:
            completed = subprocess.run(
                [sys.executable, "-m", module, str(job_file), str(result_file)],
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                check=False,
                env=environment,
            )
        if completed.returncode == 0:
            result: Row = json.loads(result_file.read_text(encoding="utf-8"))
            return result
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last_line = lines[-1] if lines else "it left no message"
        return {"status": "failed", "why": f"its process ended with {completed.returncode}: {last_line}"}


def required(task: str, result: Row) -> Row:
    """Return the result of a job that the benchmark cannot do without.

    Raises:
        UserError: if the job has failed.
    """
    if "why" in result:
        raise UserError(f"the benchmark's job {task!r} failed: {result['why']}")
    return result


def one_line(error: Exception) -> str:
    """The message of ``error`` in one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
