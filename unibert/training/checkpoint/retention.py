"""Which checkpoints are kept, and how much disk space they need."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unibert.errors import UserError
from unibert.schedules import passes_multiple

SPACE_MARGIN = 1.05
"""A checkpoint is begun only if this multiple of its size is free: metrics and logs go to the same disk."""

MAX_BYTES_PER_PARAMETER = 16
"""Weights (2 or 4 bytes), fp32 weights and AdamW's two moments, under any ZeRO stage."""


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """A checkpoint is kept while one of these rules keeps it; see :class:`unibert.training.config.TrainingConfig`.

    Attributes:
        last: number of newest checkpoints to keep.
        every_tokens: keep the first checkpoint at or after each multiple of this number of tokens.
        best: figure whose best checkpoint is kept, of those that have it in their description: ``heldout_mlm_loss``,
            of which the lowest is best, or an accuracy, of which the highest is. Of equals the earliest is kept.
    """

    last: int
    every_tokens: int | None = None
    best: str | None = None

    def is_milestone(self, tokens: int, tokens_before: int) -> bool:
        """Whether the checkpoint after ``tokens`` tokens is the first at or after a multiple, if the previous one was
        saved after ``tokens_before``."""
        return passes_multiple(self.every_tokens, tokens_before, tokens)

    def superseded(self, descriptions: Sequence[dict[str, Any]]) -> list[int]:
        """Indices of the checkpoints that no rule keeps, given the descriptions of all checkpoints, oldest first."""
        kept = set(range(len(descriptions))[-self.last :])
        kept.update(index for index, one in enumerate(descriptions) if one["milestone"])
        if self.best is not None:
            sign = 1 if self.best == "heldout_mlm_loss" else -1
            figures = [(one.get(self.best), index) for index, one in enumerate(descriptions)]
            measured = [(sign * figure, index) for figure, index in figures if figure is not None]
            if measured:
                kept.add(min(measured)[1])
        return [index for index in range(len(descriptions)) if index not in kept]


def checkpoint_bytes(stage: int, parameters: int, itemsize: int, moments: int) -> int:
    """Size of all files of one checkpoint: the optimizer's moments and the weights' average, the fp32 weights,
    and the model's own weights.

    ZeRO 3 saves only the fp32 weights, and under ZeRO 0 in fp32 there are no others.
    """
    own = 0 if stage == 3 or (stage == 0 and itemsize == 4) else itemsize
    return 4 * moments + (4 + own) * parameters


def rank_checkpoint_bytes(
    stage: int, parameters: int, itemsize: int, moments: int, *, rank: int, world_size: int
) -> int:
    """The part of :func:`checkpoint_bytes` that ``rank`` writes: its shard from ZeRO 1 on; on rank 0, all that is not
    sharded."""
    sharded = 4 * (parameters + moments) if stage else 0
    unsharded = checkpoint_bytes(stage, parameters, itemsize, moments) - sharded if rank == 0 else 0
    return unsharded + sharded // world_size


def raise_if_no_room(folder: Path, num_bytes: int) -> None:
    """Raise a UserError if the disk of ``folder``, or of its nearest existing parent, has no room for a checkpoint."""
    while not folder.exists():
        folder = folder.parent
    needed, free = SPACE_MARGIN * num_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: a checkpoint needs {_size(needed)}, but {_size(free)} are free; make room, lower "
            "training.keep_checkpoints or choose another run_dir, and the same command continues"
        )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"
