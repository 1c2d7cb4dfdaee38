"""The text from which a run computes statistics of its teacher before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from unibert.model.distiller import Distiller
from unibert.stream import Batch, split_batches
from unibert.training.config import RunConfig

_TOKENS_PER_DIMENSION = 128
"""Sample size: a covariance of H dimensions needs many times H samples."""
_SEQUENCE_LENGTH = 24
"""Sentences are short, and layers that were fitted to longer pieces of text find far fewer translations of them."""


def sample_batches(distiller: Distiller, config: RunConfig, num_languages: int) -> Iterator[Batch]:
    """Yield train text in short pieces. Every language has the same share, the beginning of its train shards.

    Raises:
        UserError: if the corpus cannot be read.
    """
    training = config.training
    tokens_per_batch = training.micro_batch_size * training.timeline()[0].sequence_length
    return split_batches(
        config.corpus,
        config.stream,
        split="train",
        seed=config.seed,
        sequence_length=_SEQUENCE_LENGTH,
        micro_batch_size=ceil(tokens_per_batch / _SEQUENCE_LENGTH),
        max_sequences_per_language=ceil(
            _TOKENS_PER_DIMENSION * distiller.teacher_width / _SEQUENCE_LENGTH / num_languages
        ),
    )
