"""What all ranks exchange in every step: counts of the global batch, a step ahead, and announcements."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from unibert.model.config import AdversaryConfig
from unibert.stream import Batch
from unibert.training.ranks.collectives import PendingSum


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """Counts of one rank, or their sums over all ranks.

    The sums travel in float64, which adds checksums of 32 bits exactly for two million sequences.
    """

    masked_tokens: int = 0
    tokens: int = 0
    """Without padding."""
    documents: int = 0
    """Those that the teacher has read; pieces of a document that was cut count apart."""
    adversary_weight: float = 0.0
    """Documents, or tokens, that the discriminator classifies, each weighted by its class."""
    damaged_blocks: int = 0
    """Damaged blocks met while the batch was read."""
    checksum: int = 0
    """See :meth:`unibert.stream.sequences.MaskedSequences.checksum`."""
    mistakes: int = 0
    """Ranks that have met a mistake since the last exchange."""


@dataclass(frozen=True, kw_only=True)
class Announcements:
    """What a rank tells the others while it makes a step, or the sums over all ranks."""

    stop_requests: int = 0
    """Ranks that a signal has asked to stop."""
    ranks_written: int = 0
    """Ranks that have written their part of the pending checkpoint."""


Counts = TypeVar("Counts", StepCounts, Announcements)


class PendingCounts(Generic[Counts]):
    """Counts that are being summed over all ranks, by one all-reduce on ``device``."""

    def __init__(self, own: Counts, device: torch.device) -> None:
        self._own: Counts = own
        self._sums = PendingSum(torch.tensor([float(value) for value in astuple(own)], dtype=torch.float64), device)

    def result(self) -> Counts:
        """Wait for the sums and return them."""
        sums = zip(self._own.__dataclass_fields__, self._sums.tolist(), strict=True)
        return replace(self._own, **{name: type(getattr(self._own, name))(value) for name, value in sums})


def count_tokens(batches: list[Batch]) -> tuple[int, int]:
    """Number of masked tokens, and of tokens without padding."""
    masked = sum(batch.masked_positions.numel() for batch in batches)
    return masked, sum(int((batch.document_ids >= 0).sum()) for batch in batches)


def adversary_weight(batches: list[Batch], adversary: AdversaryConfig | None, class_weights: Tensor | None) -> float:
    """Number of samples that the discriminator classifies, each weighted by its class if ``class_weights`` is given."""
    weight = 0.0
    for batch in batches:
        classified = batch.document_languages
        if adversary is not None and adversary.level == "token":
            classified = classified[batch.document_ids[batch.document_ids >= 0]]
        weight += classified.numel() if class_weights is None else float(class_weights[classified].sum().double())
    return weight
