"""Problems with this machine's disks and GPUs, checked before training and by the doctor."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MIN_FREE_GPU_SHARE = 0.9
"""Minimum free share of a GPU's memory; the driver and this process hold the rest."""

MIN_TEMPORARY_GIB = 0.5
"""Minimum free space in the folder for temporary files."""

_GIB = 2**30


def min_run_gib() -> float:
    """Return the GiB that must be free in a run folder: UNIBERT_LEAST_GIB, which a site may set."""
    return float(os.environ.get("UNIBERT_LEAST_GIB", "2"))


def free_gib(folder: Path) -> float:
    """Return the GiB that are free for this user in ``folder``."""
    return shutil.disk_usage(folder).free / _GIB


def not_writable(folder: Path) -> list[str]:
    """Return a problem if a file in ``folder``, which exists, cannot be written and removed."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".unibert-") as probe:
            probe.write(bytes(1 << 16))
    except OSError as error:
        return [f"{folder} cannot be written ({error.strerror})"]
    return []


def too_full(folder: Path, min_gib: float) -> list[str]:
    """Return a problem if less than ``min_gib`` GiB are free in ``folder``."""
    free = free_gib(folder)
    return [f"{folder} has {free:.2f} GiB free, but needs {min_gib:g}"] if free < min_gib else []


def held_gpus() -> list[str]:
    """Return a problem for every GPU on which other processes hold memory."""
    import torch

    problems = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        if free < MIN_FREE_GPU_SHARE * total:
            problems.append(
                f"GPU {index} has {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, another process holds the rest"
            )
    return problems
