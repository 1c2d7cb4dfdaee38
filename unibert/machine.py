"""What is bad about this machine's disks and GPUs: looked at before training and by the doctor."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MIN_FREE_GPU_SHARE = 0.9
"""Of a GPU's memory; the rest is what the driver and this process itself hold."""

MIN_TEMPORARY_GIB = 0.5
"""Free in the folder for temporary files."""

_GIB = 2**30


def min_run_gib() -> float:
    """GiB that have to be free in a run folder: UNIBERT_LEAST_GIB, which a site sets."""
    return float(os.environ.get("UNIBERT_LEAST_GIB", "2"))


def free_gib(folder: Path) -> float:
    """GiB free to this user in ``folder``."""
    return shutil.disk_usage(folder).free / _GIB


def not_writable(folder: Path) -> list[str]:
    """A problem if a file in ``folder``, which exists, cannot be written and removed."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".unibert-") as probe:
            probe.write(bytes(1 << 16))
    except OSError as error:
        return [f"{folder} cannot be written ({error.strerror})"]
    return []


def too_full(folder: Path, least: float) -> list[str]:
    """A problem if less than ``least`` GiB are free in ``folder``."""
    free = free_gib(folder)
    return [f"{folder} has {free:.2f} GiB free, and {least:g} are wanted"] if free < least else []


def held_gpus() -> list[str]:
    """The GPUs of which other processes hold memory."""
    import torch

    problems = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        if free < MIN_FREE_GPU_SHARE * total:
            problems.append(
                f"GPU {index} has {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, another process holds the rest"
            )
    return problems
