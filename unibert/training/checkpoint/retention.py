"""Which checkpoints are kept, and the room that they take."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unibert.errors import UserError

SPARE = 1.05
"""A checkpoint is begun only where it and this share more would fit: metrics and logs go to the same disk."""

MAX_BYTES_PER_PARAMETER = 16
"""Weights (2 or 4 bytes), fp32 weights and AdamW's two moments, whatever the ZeRO stage."""


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """A checkpoint is kept for as long as one of these wants it; see :class:`unibert.training.config.TrainingConfig`.

    Attributes:
        last: how many of the newest.
        every_tokens: the first checkpoint at or after each multiple of so many tokens.
        best: the one with the lowest held-out MLM loss.
    """

    last: int
    every_tokens: int | None = None
    best: bool = False

    def is_milestone(self, tokens: int, tokens_before: int) -> bool:
        """Whether a checkpoint after ``tokens`` tokens is the first past a multiple, the one before it being after
        ``tokens_before``."""
        return self.every_tokens is not None and tokens // self.every_tokens > tokens_before // self.every_tokens

    def superseded(self, descriptions: Sequence[dict[str, Any]]) -> list[int]:
        """Places of the checkpoints that nothing wants; ``descriptions`` are of all there are, oldest first."""
        wanted = set(range(len(descriptions))[-self.last :])
        wanted.update(place for place, one in enumerate(descriptions) if one["milestone"])
        losses = [(one["heldout_mlm_loss"], place) for place, one in enumerate(descriptions)]
        measured = [pair for pair in losses if pair[0] is not None]
        if self.best and measured:
            wanted.add(min(measured)[1])
        return [place for place in range(len(descriptions)) if place not in wanted]


def checkpoint_bytes(stage: int, parameters: int, itemsize: int) -> int:
    """Of all files of one checkpoint: AdamW's two moments and the fp32 weights, and the model's own weights.

    ZeRO 3 saves no weights but the fp32 ones, and ZeRO 0 in fp32 has no others.
    """
    return (12 if stage == 3 or (stage == 0 and itemsize == 4) else 12 + itemsize) * parameters


def rank_checkpoint_bytes(stage: int, parameters: int, itemsize: int, *, rank: int, world_size: int) -> int:
    """Of :func:`checkpoint_bytes`, what ``rank`` writes: its share from ZeRO 1 on; rank 0 all that is not shared."""
    shared = 12 * parameters if stage else 0
    alone = checkpoint_bytes(stage, parameters, itemsize) - shared if rank == 0 else 0
    return alone + shared // world_size


def raise_if_no_room(folder: Path, num_bytes: int) -> None:
    """Raise a UserError where the disk of ``folder``, or of its nearest parent, has no room for a checkpoint."""
    while not folder.exists():
        folder = folder.parent
    needed, free = SPARE * num_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: a checkpoint needs {_size(needed)} there and {_size(free)} are free; make room, lower "
            "training.keep_checkpoints or choose another run_dir, and the same command continues"
        )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"
