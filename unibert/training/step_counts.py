"""Counts of one global batch, which all ranks exchange once per step."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from unibert.model.config import AdversaryConfig
from unibert.stream import Batch
from unibert.training.ranks.collectives import sum_over_ranks


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
    stop_requests: int = 0
    """Ranks that a signal has asked to stop."""
    ranks_written: int = 0
    """Ranks that have written their part of the pending checkpoint."""
    damaged_blocks: int = 0
    """Damaged blocks met while the batch was read."""
    checksum: int = 0
    """See :meth:`unibert.stream.sequences.MaskedSequences.checksum`."""
    mistakes: int = 0
    """Ranks that have met a mistake since the last exchange."""

    def summed(self, device: torch.device) -> StepCounts:
        """The sums over all ranks, by one all-reduce on ``device``."""
        own = torch.tensor([float(value) for value in astuple(self)], dtype=torch.float64, device=device)
        sums = sum_over_ranks(own).tolist()
        names = self.__dataclass_fields__
        return StepCounts(**{name: type(getattr(self, name))(value) for name, value in zip(names, sums, strict=True)})


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
