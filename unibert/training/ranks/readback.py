"""Copies between host and device for which the host does not wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on ``device``; the copy takes its turn behind the work queued there."""
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)


class Readback:
    """Values on their way from the device, in the order of the work queued there.

    Reading them waits for the work queued before the copy, not for what was queued since.
    """

    def __init__(self, values: Tensor) -> None:
        on_device = values.device.type != "cpu"
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=on_device)
        self._host.copy_(values.detach(), non_blocking=True)
        self._copied = torch.cuda.Event() if on_device else None
        if self._copied is not None:
            self._copied.record()

    def tolist(self) -> Any:
        """Return the values as `torch.Tensor.tolist` does."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.tolist()
