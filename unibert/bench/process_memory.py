"""Linux's counts of a process's memory."""

from __future__ import annotations

from pathlib import Path

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def status_bytes(key: str, status: Path = STATUS) -> int:
    """An entry of a process's ``status``, or of a file like it, such as ``VmRSS``."""
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
