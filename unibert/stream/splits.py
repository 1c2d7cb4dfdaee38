"""Batches of a split: the same sequences with the same masks every time, each sequence in one language."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    reader = SplitReader(
        corpus_dir,
        config,
        split=split,
        seed=seed,
        sequence_length=sequence_length,
        max_sequences_per_language=max_sequences_per_language,
        piece_length=piece_length,
    )
    yield from reader.share(reader.count(reader.codes), rank, world_size).batches(micro_batch_size)


@dataclass(frozen=True)
class SplitShare:
    """Some consecutive sequences of a split, which one rank reads."""

    sequences: MaskedSequences
    """The rank's sequences; one without labels if the rank has none."""
    most_sequences: int
    """Largest number that a rank has."""

    def batches(self, micro_batch_size: int) -> Iterator[Batch]:
        """Yield the sequences in batches, as many as on every other rank; see `split_batches`."""
        num_sequences = self.sequences.num_sequences
        for start in range(0, self.most_sequences, micro_batch_size):
            if start < num_sequences:
                yield Batch.from_sequences(self.sequences, start, min(start + micro_batch_size, num_sequences))
            else:
                yield Batch.from_sequences(_unlabelled(self.sequences), 0, 1)


class SplitReader:
    """Reads a split in two steps, so that each of many ranks reads a part: the languages' sequences are counted, and
    the counts of all of them tell which sequences a rank has. For the other arguments and errors see `split_batches`.

    Args:
        manifest: that of the corpus, if it has been read.

    Attributes:
        codes: the languages that the split has, in the order of their sequences.
    """

    def __init__(
        self,
        corpus_dir: str | os.PathLike[str],
        config: StreamConfig,
        *,
        split: Split,
        seed: int,
        sequence_length: int,
        max_sequences_per_language: int | None = None,
        piece_length: int | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        root, self._manifest = Path(corpus_dir), Manifest.load(corpus_dir) if manifest is None else manifest
        self._indices = {code: index for index, code in enumerate(chosen_languages(self._manifest, config))}
        self.codes = [code for code in self._indices if self._manifest.tokens(code, split)]
        if not self.codes:
            raise UserError(f"{root}: the corpus has no held-out documents; build it with a held-out share")
        self._config, self._split, self._seed = config, split, seed
        self._source, self._vocabulary = ShardSource(root, config), Vocabulary.of_corpus(self._manifest)
        self._sequence_length, self._max_sequences = sequence_length, max_sequences_per_language
        self._piece_length = piece_length
        self._read: dict[str, Sequences] = {}

    def count(self, codes: Sequence[str]) -> dict[str, int]:
        """Read some languages, which stay in memory until `share` is called, and count their sequences."""
        return {code: self._sequences(code).num_sequences for code in codes}

    def share(self, counts: Mapping[str, int], rank: int, world_size: int) -> SplitShare:
        """Return a rank's share, given the number of sequences of every language."""
        num_sequences = sum(counts.values())
        first, last = num_sequences * rank // world_size, num_sequences * (rank + 1) // world_size
        is_empty = first == last
        if is_empty:
            first, last = min(first, num_sequences - 1), min(first, num_sequences - 1) + 1
        parts = []
        before = 0
        for code in self.codes:
            start, end = max(first - before, 0), min(last - before, counts[code])
            if start < end:
                parts.append(self._masked(self._sequences(code).part(start, end), before + start))
            before += counts[code]
        self._read.clear()
        sequences = MaskedSequences.concatenate(parts)
        return SplitShare(_unlabelled(sequences) if is_empty else sequences, ceil(num_sequences / world_size))

    def _masked(self, sequences: Sequences, first_sequence: int) -> MaskedSequences:
        return mask(
            sequences,
            seed=self._seed,
            purpose=Purpose.HELDOUT_MASKING,
            first_sequence=first_sequence,
            rate=HELDOUT_MASKING_RATE,
            mask_share=self._config.mask_share,
            random_share=self._config.random_share,
            vocabulary=self._vocabulary,
        )

    def _sequences(self, code: str) -> Sequences:
        if code not in self._read:
            self._read[code] = _language_sequences(
                self._source,
                self._vocabulary,
                self._manifest.shards_of(code, self._split),
                self._indices[code],
                self._seed,
                self._sequence_length,
                self._max_sequences,
                self._piece_length,
            )
        return self._read[code]


def _unlabelled(sequences: MaskedSequences) -> MaskedSequences:
    return replace(sequences, labels=np.full_like(sequences.labels, NOT_MASKED))


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
