"""The implementations that a caller may name, and the choice that ``auto`` makes."""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

MLM_HEAD_PATHS = ("auto", "chunked", "recompute", "exp-store")
"""``chunked`` is plain torch on any device. The others are Triton on CUDA: ``recompute`` computes the logits twice and
needs the least memory; ``exp-store`` keeps their exponentials in between and is the fastest."""
DISTILLATION_PATHS = ("auto", "chunked", "recompute", "store-teacher")
"""As above; ``store-teacher`` keeps the teacher's logits in between, so that only the student's are computed twice."""
ADVERSARY_PATHS = ("auto", "chunked", "fused")
"""``fused`` is Triton on CUDA: forward pass and gradients in one kernel."""

WORKSPACE_SHARE = 16
"""By default the buffer of ``exp-store`` and ``store-teacher`` takes at most 1/16 of the device's memory."""
MIN_STORED_ROWS = 1024
"""With fewer rows in the buffer the weight's gradient is read and written so often that storing does not pay: at 1024
rows 8 bytes per element against 6 x 1024 flops of products, a quarter of the time on an H100."""

_logger = logging.getLogger("unibert_kernels")


def check_path(path: str, paths: tuple[str, ...]) -> None:
    """Raise ValueError unless ``path`` is one of ``paths``."""
    if path not in paths:
        raise ValueError(f"path: must be one of {', '.join(paths)}, got {path!r}")


def choose_path(loss: str, path: str, best: str, *tensors: Tensor) -> str:
    """The path for ``tensors``: ``path`` itself or, if that is ``auto``, ``best`` where it can run, else ``chunked``.

    The choice is logged once. It depends on devices, dtypes and shapes alone, so that a resumed run makes the same
    choice.

    Raises:
        ValueError: if ``path`` names a path that cannot serve the tensors.
    """
    reason = "" if path == "chunked" else _reason_against_triton(path, tensors)
    chosen = path
    if path == "auto":
        chosen = "chunked" if reason else best
    if _logger.isEnabledFor(logging.INFO):
        _log_once(loss, chosen, reason)
    return chosen


def choose_head_path(
    loss: str,
    path: str,
    storing: str,
    max_workspace: int,
    num_rows: int,
    hidden: Tensor,
    *weights: Tensor,
    operands: torch.dtype | None = None,
) -> str:
    """As `choose_path`, for a head over the vocabulary: ``auto`` takes the path ``storing`` if the workspace is large
    enough, else recompute.

    ``operands`` is the dtype of the products' operands, by default hidden's.

    Raises:
        ValueError: also for exp-store with fp16 operands, whose range cannot hold exponentials.
    """
    operands = operands or hidden.dtype
    if path == "exp-store" and operands == torch.float16:
        raise ValueError("path: exp-store needs bf16 or fp32, whose range holds exponentials; take recompute for fp16")
    best = best_head_path(storing, num_rows, len(weights[0]), operands, max_workspace)
    return choose_path(loss, path, best, hidden, *weights)


def best_head_path(storing: str, num_rows: int, vocab_size: int, operands: torch.dtype, max_workspace: float) -> str:
    """The path that ``auto`` takes on a GPU: ``storing`` or ``recompute``.

    ``storing`` needs a buffer of `MIN_STORED_ROWS` rows, or of all if there are fewer; exp-store cannot use fp16.

    Args:
        storing: ``exp-store`` or ``store-teacher``.
        num_rows: rows of the hidden states.
        vocab_size: logits per row.
        operands: dtype of the products' operands, and so of the buffer.
        max_workspace: maximum bytes of the buffer.
    """
    fits = max_workspace >= min(MIN_STORED_ROWS, num_rows) * vocab_size * operands.itemsize
    return storing if fits and (operands != torch.float16 or storing != "exp-store") else "recompute"


def runs_triton(path: str, *tensors: Tensor) -> bool:
    """Whether `choose_path` chooses a Triton path.

    Raises:
        ValueError: as `choose_path`.
    """
    return path != "chunked" and not _reason_against_triton(path, tensors)


def default_workspace(device: torch.device) -> int:
    """Default bytes that a storing path may use on ``device``."""
    if device.type != "cuda":
        return 2**30
    return torch.cuda.get_device_properties(device).total_memory // WORKSPACE_SHARE


def interpreter_enabled() -> bool:
    """Whether Triton interprets kernels on the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def _reason_against_triton(path: str, tensors: tuple[Tensor, ...]) -> str:
    """Why Triton cannot serve ``tensors``, empty if it can.

    Raises:
        ValueError: if it cannot, although ``path`` names a Triton path.
    """
    # The interpreter takes a thousand times as long, so ``auto`` never chooses it.
    reason = _unmet_requirement(tensors, interpreter=path != "auto" and interpreter_enabled())
    if reason and path != "auto":
        raise ValueError(f"path: {path} {reason}; take chunked")
    return reason


def _unmet_requirement(tensors: tuple[Tensor, ...], interpreter: bool) -> str:
    if not triton_installed():
        return "needs triton, which is not installed"
    device = tensors[0].device
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "needs a GPU of compute capability 8.0 or above"
    elif not interpreter:
        return f"needs CUDA tensors, these are on {device.type}"
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return "computes in fp32 at most, not in fp64"
    if any(tensor.shape[-1] % 16 for tensor in tensors):
        return "needs hidden sizes that are multiples of 16"
    return ""


@cache
def triton_installed() -> bool:
    """Whether Triton can be imported."""
    return find_spec("triton") is not None


@cache
def _log_once(loss: str, path: str, reason: str) -> None:
    _logger.info("%s: path %s%s", loss, path, f" (Triton {reason})" if reason else "")
