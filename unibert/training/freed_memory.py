"""Reuse of the memory that a training on the CPU frees in every step.

glibc returns large blocks to the system when they are freed, which gives them back page by page, filled with zeros:
gradients and logits over a large vocabulary take 0.5 to 1 GiB of them in every step. A virtual machine may even return
them to its host.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ENVIRONMENT = {"THP_MEM_ALLOC_ENABLE": "1", "MALLOC_ARENA_MAX": "1"}
"""Environment of a process that keeps its memory.

By the first, torch aligns blocks of 2 MiB and more to pages, and asks for huge ones; it decides so when it is imported.
At torch's usual alignment, 64 bytes, glibc before 2.38 rarely reuses a freed block for another of the same size, since
it looks for a few bytes more to align it. By the second, threads take memory where the main thread does; elsewhere
glibc cannot keep blocks of more than 64 MiB, such as those in which gloo receives weights and gradients."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt, from malloc.h."""
_LARGEST_INT = 2**31 - 1
_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")


def prepare_process() -> None:
    """Let this process, which has imported no torch and started no thread yet, and its children be able to keep their
    memory. Do nothing on a machine with a GPU."""
    if any(Path(driver).exists() for driver in _GPU_DRIVERS):
        return
    if "MALLOC_ARENA_MAX" not in os.environ and _has_glibc():
        # glibc has read this process's environment already.
        ctypes.CDLL(None).mallopt(_ARENA_MAX, int(ENVIRONMENT["MALLOC_ARENA_MAX"]))
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def keep_freed_memory(device: torch.device) -> None:
    """Let the process of a CPU keep the memory that it frees; do nothing elsewhere. `prepare_process` should have
    prepared it."""
    if device.type == "cpu" and _has_glibc():
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_INT)
        mallopt(_TRIM_THRESHOLD, _LARGEST_INT)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
