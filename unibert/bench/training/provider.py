"""A provider of ``bench train``: one way to train."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from unibert.bench.training.stopwatch import Stopwatch
from unibert.bench.training.work import TrainWork


@dataclass(frozen=True)
class Place:
    """Where a rank trains."""

    rank: int
    device: torch.device

    def autocast(self) -> AbstractContextManager[None]:
        """bf16 on a GPU, nothing on a CPU, where training computes in fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


@dataclass(frozen=True)
class TrainProvider:
    """A way to train."""

    name: str
    side: Literal["ours", "peer", "ablation"]
    train: Callable[[TrainWork, Place, Stopwatch], None]
    """Makes `TrainWork.num_steps` steps and ends each with `Stopwatch.end_step`."""
    max_ranks: int | None = None
    """Most ranks that it can train on."""
    keeps_memory: bool = False
    """Whether it calls `unibert.training.freed_memory.keep_freed_memory`, for which its process is started."""
