"""The processes of a run that is under way."""

import os
import time
from pathlib import Path


def wait_for_line(path: Path, step: int, timeout: float = 240) -> None:
    """Until the metrics file ``path`` has lines of ``step`` steps."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count('"loss"') >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} has no {step} steps after {timeout} s")


def rank_process(launcher: int, rank: int) -> int:
    """The process id of a rank that the launcher with this process id has started."""
    for folder in Path("/proc").iterdir():
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            # Neither the launcher's own processes nor a rank's loaders, which have the same words and variables.
            ours = os.getpgid(int(folder.name)) == launcher and b"deepspeed.launcher.launch" in (
                Path("/proc") / parent / "cmdline"
            ).read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if ours and b"pretrain" in words and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")
