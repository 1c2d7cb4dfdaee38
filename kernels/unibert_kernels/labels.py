"""Labels that name no class: they must not be looked up anywhere, and the loss must say that there were some."""

from __future__ import annotations

import torch
from torch import Tensor


def replace_invalid(labels: Tensor, counted: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """``labels`` (N,) with 0 where one does not count or lies outside 0 … num_classes-1, and which (N,) bool of those
    that count do."""
    outside = (labels < 0) | (labels >= num_classes)
    return labels.masked_fill(outside | ~counted, 0), outside & counted


def nan_if_any(invalid: Tensor) -> Tensor:
    """() fp32: 1, or NaN if any of ``invalid`` is true.

    A loss times this has NaN for a value and for gradients, which a trainer's check for finite numbers finds. To raise
    an error here would mean to wait for the device.
    """
    return torch.where(invalid.any(), torch.nan, 1.0)
