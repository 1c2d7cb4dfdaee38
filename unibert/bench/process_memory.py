"""Memory of a process, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def status_bytes(key: str, status: Path = STATUS) -> int:
    """The entry ``key``, such as ``VmRSS``, of a process's ``status`` or a file of the same format, in bytes."""
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
