"""Batches of a split: the same sequences with the same masks every time, each sequence in one language."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np

from unibert.corpus.manifest import Manifest, Shard, Split
from unibert.errors import UserError
from unibert.stream.batch import Batch
from unibert.stream.config import StreamConfig
from unibert.stream.masking import mask
from unibert.stream.packing import pack_shuffled
from unibert.stream.randomness import Purpose, permutation
from unibert.stream.sequences import NOT_MASKED, MaskedSequences, Sequences
from unibert.stream.source import ShardSource, check_shards_exist
from unibert.stream.stream import chosen_languages
from unibert.stream.vocabulary import Vocabulary
from unibert.stream.window import load_window

HELDOUT_MASKING_RATE = 0.15


def split_batches(
    corpus_dir: str | os.PathLike[str],
    config: StreamConfig,
    *,
    split: Split,
    seed: int,
    sequence_length: int,
    micro_batch_size: int,
    max_sequences_per_language: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    piece_length: int | None = None,
) -> Iterator[Batch]:
    """Yield this rank's share of a split's sequences, in batches of at most ``micro_batch_size``.

    Every rank yields the same number of batches, because the model's forward pass may need all ranks at once. A rank
    that has no sequence left for its last batch repeats one without labels. Masking is at 15 %, with the config's
    shares of ``<mask>`` and random tokens. Masks and choice of sequences depend on the seed alone.

    Args:
        corpus_dir: folder made by ``unibert corpus build``.
        config: ``stream`` section of the run file; language indices are those of its :class:`Stream`.
        split: of which split the documents are.
        seed: seed of the run.
        sequence_length: tokens per sequence.
        micro_batch_size: sequences per batch.
        max_sequences_per_language: number of sequences to draw at random from each language's packed ones; None takes
            all. Few are drawn from the first shards alone.
        rank: index of this rank.
        world_size: number of ranks.
        piece_length: tokens of the pieces whose vectors to read, None for no vectors.

    Raises:
        UserError: if the split is empty, or a shard cannot be read.
    """
    root, manifest = Path(corpus_dir), Manifest.load(corpus_dir)
    indices = {code: index for index, code in enumerate(chosen_languages(manifest, config))}
    codes = [code for code in indices if manifest.tokens(code, split)]
    if not codes:
        raise UserError(f"{root}: the corpus has no held-out documents; build it with a held-out share")
    source, vocabulary = ShardSource(root, config), Vocabulary.of_corpus(manifest)
    parts: list[MaskedSequences] = []
    num_sequences = 0
    for code in codes:
        shards = manifest.shards_of(code, split)
        sequences = _language_sequences(
            source, vocabulary, shards, indices[code], seed, sequence_length, max_sequences_per_language, piece_length
        )
        parts.append(
            mask(
                sequences,
                seed=seed,
                purpose=Purpose.HELDOUT_MASKING,
                first_sequence=num_sequences,
                rate=HELDOUT_MASKING_RATE,
                mask_share=config.mask_share,
                random_share=config.random_share,
                vocabulary=vocabulary,
            )
        )
        num_sequences += sequences.num_sequences
    all_sequences = MaskedSequences.concatenate(parts)
    first, last = num_sequences * rank // world_size, num_sequences * (rank + 1) // world_size
    num_batches = ceil(ceil(num_sequences / world_size) / micro_batch_size)
    for start in range(first, first + num_batches * micro_batch_size, micro_batch_size):
        if start < last:
            yield Batch.from_sequences(all_sequences, start, min(start + micro_batch_size, last))
        else:
            unlabelled = replace(all_sequences, labels=np.full_like(all_sequences.labels, NOT_MASKED))
            yield Batch.from_sequences(unlabelled, 0, 1)


def _language_sequences(
    source: ShardSource,
    vocabulary: Vocabulary,
    shards: Sequence[Shard],
    language: int,
    seed: int,
    sequence_length: int,
    max_sequences: int | None,
    piece_length: int | None,
) -> Sequences:
    check_shards_exist(source, shards)
    if max_sequences is not None:
        tokens_before = np.cumsum([0] + [shard.tokens for shard in shards[:-1]])
        shards = shards[: int(np.searchsorted(tokens_before, max_sequences * sequence_length))]
    window = load_window(source, [(language, shard) for shard in shards], vocabulary, piece_length)
    if window.skipped:
        damaged = next(shard for shard in shards if shard.path in window.skipped)
        raise UserError(
            f"{source.location(damaged)}: {window.skipped[damaged.path]} damaged blocks, but the shards read here "
            "must be intact; copy it again"
        )
    packing = pack_shuffled(
        window.documents(),
        sequence_length,
        vocabulary.special_ids.frame_tokens,
        order_sequences=lambda count: permutation(count, seed, Purpose.HELDOUT_ORDER, language),
    )
    return window.sequences(
        packing.sequences(0, min(packing.num_sequences, max_sequences or packing.num_sequences)), sequence_length
    )
