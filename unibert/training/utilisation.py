"""Model FLOPs utilisation (MFU, PaLM, arXiv 2204.02311, appendix B): the share of the devices' peak that a run uses."""

from __future__ import annotations

from functools import cached_property

import torch

from unibert.accelerators import device_peak
from unibert.model.cost import EncoderShape, flops_by_part
from unibert.model.unibert import UniBERT
from unibert.training.config import RunConfig

PEAK_SECONDS = 0.1
"""For how long the peak of a device without a data sheet is measured, at the first log line."""


class Utilisation:
    """Computes the MFU of a run from its throughput.

    FLOPs are those that the model needs, not those that are executed: tokens without padding, attention within
    documents, logits of masked positions, nothing recomputed.

    Args:
        model: before DeepSpeed shards it.
        config: the run.
        device: device of each rank.
        dtype: dtype of the products.
        world_size: number of ranks.
    """

    def __init__(
        self, model: UniBERT, config: RunConfig, device: torch.device, dtype: torch.dtype, world_size: int
    ) -> None:
        self._student = EncoderShape.from_model(model.masked_lm)
        teacher = model.distiller.teacher if model.distiller is not None else None
        self._teacher = None if teacher is None else EncoderShape.from_model(teacher.model)
        self._config, self._num_languages = config, model.num_languages
        self._device, self._dtype, self._world_size = device, dtype, world_size

    @cached_property
    def peak(self) -> float:
        """FLOP/s of all devices: of the data sheet for a known GPU in 16 bits, else measured."""
        return 1e12 * device_peak(self._device, self._dtype, PEAK_SECONDS) * self._world_size

    def flops_per_token(self, tokens: float, masked: float, documents: float) -> float:
        """Return the FLOPs per token of a batch with these numbers of tokens, masked tokens and documents."""
        flops = flops_by_part(
            self._student,
            length=round(tokens / max(documents, 1.0)),
            masked=masked / tokens,
            masks=False,
            recompute=0.0,
            adversary=self._config.adversary,
            num_languages=self._num_languages,
            documents_per_token=documents / tokens,
            distillation=self._config.distillation,
            teacher=self._teacher,
        )
        return sum(flops.values())

    def share(self, tokens_per_second: float, tokens: float, masked: float, documents: float) -> float:
        """Return the MFU at ``tokens_per_second``, without padding, of batches such as `flops_per_token` takes."""
        return tokens_per_second * self.flops_per_token(tokens, masked, documents) / self.peak
