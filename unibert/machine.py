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

CORES_BESIDE_LOADERS = 2
"""Cores of a rank that are not for loader processes: one launches kernels, one prepares steps, writes checkpoints and
serves the network."""

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


def too_few_cores(cores: float, loader_processes: int) -> list[str]:
    """Return a problem if a rank has fewer cores than it needs for itself, its threads and its loader processes."""
    needed = loader_processes + CORES_BESIDE_LOADERS
    if cores >= needed:
        return []
    return [
        f"{cores:g} cores per rank, but a rank with {loader_processes} loader processes uses {needed}; give "
        f"--cpus-per-task={needed} to sbatch, or lower stream.num_workers"
    ]


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
