"""The held-out MLM loss, which does not depend on the world size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unibert.corpus.manifest import Manifest
from unibert.errors import UserError
from unibert.model.unibert import StepWeights
from unibert.stream.splits import SplitReader, SplitShare
from unibert.training.config import RunConfig
from unibert.training.metrics import Sums
from unibert.training.ranks.collective_counter import counted_collective
from unibert.training.ranks.collectives import agree, gather_objects
from unibert.training.ranks.placement import Placement


class HeldOut:
    """A rank's share of the corpus's held-out documents, read at the first evaluation and kept, 8 bytes per token."""

    def __init__(self, config: RunConfig, placement: Placement, manifest: Manifest) -> None:
        self._config, self._placement, self._manifest = config, placement, manifest
        self._share: SplitShare | None = None

    @torch.no_grad()
    def totals(self, engine: Any) -> dict[str, Tensor]:
        """Sums of the objectives over the held-out documents and over all ranks.

        Raises:
            AgreedError: if a rank cannot read the documents.
        """
        if self._share is None:
            self._share = self._read_share()
        unweighted = StepWeights(
            replicas=1,
            masked_tokens=1.0,
            tokens=1.0,
            documents=1.0,
            adversary_weight=1.0,
            reversal_lambda=torch.zeros((), device=self._placement.device),
        )
        sums = Sums()
        engine.eval()
        for batch in self._share.batches(self._config.training.micro_batch_size):
            with counted_collective():
                sums.add(engine(batch.to(self._placement.device), unweighted).sums)
        engine.train()
        return sums.over_ranks()

    def _read_share(self) -> SplitShare:
        """Count some languages on each rank, those of which it will most likely have a share, and read the share."""
        training, rank, world_size = self._config.training, self._placement.rank, self._placement.world_size
        counts: dict[str, int] = {}
        share, reader, mistake = None, None, None
        try:
            reader = SplitReader(
                self._config.corpus,
                self._config.stream,
                split="heldout",
                seed=self._config.seed,
                sequence_length=training.timeline()[len(training.timeline()) - 1].sequence_length,
                max_sequences_per_language=training.heldout_sequences,
                manifest=self._manifest,
            )
            num_codes = len(reader.codes)
            counts = reader.count(reader.codes[num_codes * rank // world_size : num_codes * (rank + 1) // world_size])
        except UserError as error:
            mistake = error
        agree(mistake)
        assert reader is not None
        counts = {code: count for part in gather_objects(counts) for code, count in part.items()}
        try:
            share = reader.share(counts, rank, world_size)
        except UserError as error:
            mistake = error
        agree(mistake)
        assert share is not None
        return share
