"""The text from which a run computes statistics of its teacher before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from unibert.corpus.manifest import Manifest
from unibert.stream import Batch, split_batches
from unibert.stream.stream import chosen_languages
from unibert.training.config import RunConfig

_SAMPLES_PER_DIMENSION = 128
"""Sample size: a covariance of H dimensions needs many times H samples."""
_SEQUENCE_LENGTH = 24
"""Sentences are short, and layers that were fitted to longer pieces of text find far fewer translations of them."""


def sample_batches(width: int, config: RunConfig) -> Iterator[Batch]:
    """Yield train text in short pieces, with many tokens for each of a teacher's ``width`` dimensions.

    Every language has the same share, the beginning of its train shards.

    Raises:
        UserError: if the corpus cannot be read.
    """
    return _batches(config, _SEQUENCE_LENGTH, ceil(_SAMPLES_PER_DIMENSION * width / _SEQUENCE_LENGTH), None)


def sample_taught_batches(manifest: Manifest, config: RunConfig) -> Iterator[Batch]:
    """Yield train text with its teacher's vectors, many for each of their dimensions, from all languages alike.

    Raises:
        UserError: if the corpus cannot be read.
    """
    teaching = manifest.teaching
    assert teaching is not None
    # A sequence has at least one piece.
    num_sequences = _SAMPLES_PER_DIMENSION * teaching.width
    return _batches(config, teaching.sequence_length, num_sequences, manifest.piece_length)


def _batches(config: RunConfig, sequence_length: int, num_sequences: int, piece_length: int | None) -> Iterator[Batch]:
    num_languages = len(chosen_languages(Manifest.load(config.corpus), config.stream))
    training = config.training
    tokens_per_batch = training.micro_batch_size * training.timeline()[0].sequence_length
    return split_batches(
        config.corpus,
        config.stream,
        split="train",
        seed=config.seed,
        sequence_length=sequence_length,
        micro_batch_size=ceil(tokens_per_batch / sequence_length),
        max_sequences_per_language=ceil(num_sequences / num_languages),
        piece_length=piece_length,
    )
