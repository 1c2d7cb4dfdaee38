"""Labels outside the classes: they must not be used as an index, and must make the loss NaN."""

from __future__ import annotations

import torch
from torch import Tensor


def replace_invalid(labels: Tensor, counted: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """``labels`` (N,) with 0 in place of those that do not count or lie outside 0 … num_classes-1, and a mask (N,) of
    the counted ones outside."""
    outside = (labels < 0) | (labels >= num_classes)
    return labels.masked_fill(outside | ~counted, 0), outside & counted


def nan_if_any(invalid: Tensor) -> Tensor:
    """() fp32: 1, or NaN if any of ``invalid`` is true.

    A loss times this is NaN, and so are its gradients, which a trainer's check for finite numbers detects. Raising an
    error here would mean waiting for the device.
    """
    return torch.where(invalid.any(), torch.nan, 1.0)
