"""Time and memory of a piece of work in this process, or of a command."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from unibert.bench.process_memory import STATUS, status_bytes

Row = dict[str, Any]


def measure_call(work: Callable[[], None]) -> Row:
    """Return "seconds", "cpu_seconds" and "peak_bytes" of work in this process.

    The peak is that of the process, its libraries included; it is counted by Linux.
    """
    begun, cpu = time.perf_counter(), time.process_time()
    work()
    row = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    return row | ({"peak_bytes": status_bytes("VmHWM")} if STATUS.exists() else {})


def measure_command(command: Sequence[str], output: BinaryIO, **variables: str) -> Row:
    """Run a command; return "seconds", "cpu_seconds" and "peak_bytes" of it and the processes that it starts.

    The peak is that of the largest process. Since a new process inherits the peak of the one that starts it, this one
    must be small.

    Raises:
        RuntimeError: if it fails; the message is its last line.
    """
    begun, cpu = time.perf_counter(), _cpu_of_children()
    completed = subprocess.run(
        command,
        stdout=output,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=os.environ | variables,
        check=False,
    )
    seconds = time.perf_counter() - begun
    if completed.returncode:
        lines = [line for line in completed.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"it ended with status {completed.returncode}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"seconds": seconds, "cpu_seconds": _cpu_of_children() - cpu, "peak_bytes": peak}


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
