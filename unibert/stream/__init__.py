"""The data stream of a run: reads corpus shards and yields packed, masked batches.

The names below are imported on first use, so that reading a configuration does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unibert.stream.batch import Batch
    from unibert.stream.config import StreamConfig
    from unibert.stream.splits import split_batches
    from unibert.stream.stream import StepBatch, Stream

__all__ = ["Batch", "StepBatch", "Stream", "StreamConfig", "split_batches"]

_MODULES = {"Batch": "batch", "StreamConfig": "config", "split_batches": "splits"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'stream')}"), name)
