"""Reuse of the memory that a training on the CPU frees in every step."""

from __future__ import annotations

import ctypes
import platform

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, from malloc.h."""
_LARGEST_INT = 2**31 - 1


def keep_freed_memory(device: torch.device) -> None:
    """Let the process of a CPU keep the memory that it frees; do nothing elsewhere.

    Otherwise glibc returns each block of more than 32 MiB to the system, which gives it back page by page, filled with
    zeros: gradients and logits over a large vocabulary take 0.5 to 1 GiB of them in every step.
    """
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_INT)
        mallopt(_TRIM_THRESHOLD, _LARGEST_INT)
