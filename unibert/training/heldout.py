"""The held-out MLM loss, which does not depend on the world size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unibert.errors import UserError
from unibert.model.unibert import StepWeights
from unibert.stream import Batch, split_batches
from unibert.training.config import RunConfig
from unibert.training.metrics import Sums
from unibert.training.ranks.collective_counter import counted_collective
from unibert.training.ranks.collectives import agree
from unibert.training.ranks.placement import Placement


@torch.no_grad()
def heldout_totals(engine: Any, config: RunConfig, placement: Placement) -> dict[str, Tensor]:
    """Sums of the objectives over the corpus's held-out documents and over all ranks.

    Raises:
        AgreedError: if a rank cannot read the documents.
    """
    training = config.training
    batches: list[Batch] = []
    mistake = None
    try:
        batches = list(
            split_batches(
                config.corpus,
                config.stream,
                split="heldout",
                seed=config.seed,
                sequence_length=training.timeline()[len(training.timeline()) - 1].sequence_length,
                micro_batch_size=training.micro_batch_size,
                max_sequences_per_language=training.heldout_sequences,
                rank=placement.rank,
                world_size=placement.world_size,
            )
        )
    except UserError as error:
        mistake = error
    agree(mistake)
    unweighted = StepWeights(
        replicas=1,
        masked_tokens=1.0,
        tokens=1.0,
        documents=1.0,
        adversary_weight=1.0,
        reversal_lambda=torch.zeros((), device=placement.device),
    )
    sums = Sums()
    engine.eval()
    for batch in batches:
        with counted_collective():
            sums.add(engine(batch.to(placement.device), unweighted).sums)
    engine.train()
    return sums.over_ranks()
