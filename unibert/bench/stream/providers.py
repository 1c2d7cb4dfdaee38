"""All providers of the benchmark: UniBERT's stream as a whole and by stages, and the peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import TypeVar

import numpy as np

from unibert.bench.stream.peers import PEERS
from unibert.bench.stream.work import Delivery, Source, StreamProvider, Work
from unibert.schedules import Timeline
from unibert.stream.batch import Batch
from unibert.stream.config import StreamConfig
from unibert.stream.masking import mask
from unibert.stream.packing import Permutation, pack_shuffled
from unibert.stream.randomness import Purpose, permutation
from unibert.stream.sequences import MaskedSequences, Sequences
from unibert.stream.source import ShardSource
from unibert.stream.stream import Stream
from unibert.stream.window import Window, load_window

Product = TypeVar("Product", Window, Sequences, MaskedSequences)

STAGE_TOKENS = 8_000_000
"""Tokens of the inputs of a stage, which are made in advance and repeated."""


def stream_config(work: Work, num_workers: int = 0) -> StreamConfig:
    """Sample languages in proportion to their tokens, so that a pass over the corpus reads what the peers read."""
    return StreamConfig(sampling_exponent=1.0, masking_rate=work.masking_rate, num_workers=num_workers)


def timeline(work: Work) -> Timeline:
    """Steps of ``batch_size`` sequences per lane, for more than twice the corpus."""
    frame_tokens = work.vocabulary.special_ids.frame_tokens
    tokens = 2 * sum(shard.tokens + frame_tokens * shard.documents for shard in work.shards)
    sequences = work.batch_size * StreamConfig().lanes
    return Timeline(tokens + sequences * work.sequence_length, sequences, work.sequence_length)


def _full_stream(num_workers: int) -> Callable[[Work], dict[str, Source]]:
    def sources(work: Work) -> dict[str, Source]:
        def source() -> Iterator[Delivery]:
            stream = Stream(work.corpus, stream_config(work, num_workers), seed=work.seed, timeline=timeline(work))
            return deliveries(stream)

        def deliveries(stream: Stream) -> Iterator[Delivery]:
            for step in stream.steps():
                tokens = int(step.sequences.document_lengths.sum())
                yield Delivery(tokens, step.sequences.input_ids.size, step.micro_batches(work.batch_size))

        return {"": source}

    return sources


def _read(work: Work) -> Iterator[Window]:
    """Every shard of the corpus once, in windows of the lanes' size, in random order."""
    config = stream_config(work)
    shards, vocabulary, source = work.shards, work.vocabulary, ShardSource(Path(work.corpus), config)
    order = np.random.default_rng(work.seed).permutation(len(shards))
    for first in range(0, len(shards), config.window_shards):
        window_shards = [(0, shards[index]) for index in order[first : first + config.window_shards]]
        yield load_window(source, window_shards, vocabulary)


def _pack(work: Work, windows: Iterable[Window]) -> Iterator[Sequences]:
    def order(*indices: int) -> Permutation:
        return lambda count: permutation(count, work.seed, Purpose.WINDOW, *indices)

    for number, window in enumerate(windows):
        packing = pack_shuffled(
            window.documents(),
            work.sequence_length,
            window.special_ids.frame_tokens,
            order_documents=order(number, 0),
            order_sequences=order(number, 1),
        )
        for first in range(0, packing.num_sequences, work.batch_size):
            batch = packing.sequences(first, min(first + work.batch_size, packing.num_sequences))
            yield window.sequences(batch, work.sequence_length)


def _mask(work: Work, batches: Iterable[Sequences]) -> Iterator[MaskedSequences]:
    config, vocabulary = stream_config(work), work.vocabulary
    for number, sequences in enumerate(batches):
        yield mask(
            sequences,
            seed=work.seed,
            purpose=Purpose.MASKING,
            first_sequence=number * work.batch_size,
            rate=work.masking_rate,
            mask_share=config.mask_share,
            random_share=config.random_share,
            vocabulary=vocabulary,
        )


def _size(product: Window | Sequences) -> tuple[int, int]:
    """Number of tokens, and of positions with padding."""
    if isinstance(product, Window):
        tokens = int(product.lengths.sum()) + product.special_ids.frame_tokens * len(product.lengths)
        return tokens, tokens
    return int(product.document_lengths.sum()), product.input_ids.size


def _collect_inputs(products: Iterator[Product]) -> list[Product]:
    """Inputs of a stage, held in memory."""
    inputs: list[Product] = []
    tokens = 0
    while tokens < STAGE_TOKENS and (product := next(products, None)) is not None:
        inputs.append(product)
        tokens += _size(product)[0]
    return inputs


def _reading(work: Work) -> dict[str, Source]:
    return {"": lambda: (Delivery(*_size(window), [window]) for window in _read(work))}


def _packing(work: Work) -> dict[str, Source]:
    windows = _collect_inputs(_read(work))
    return {"": lambda: (Delivery(*_size(sequences), [sequences]) for sequences in _pack(work, cycle(windows)))}


def _masking(work: Work) -> dict[str, Source]:
    batches = _collect_inputs(_pack(work, _read(work)))
    return {"": lambda: (Delivery(*_size(sequences), [sequences]) for sequences in _mask(work, cycle(batches)))}


def _batches(work: Work) -> dict[str, Source]:
    batches = _collect_inputs(_mask(work, _pack(work, _read(work))))
    return {
        "": lambda: (
            Delivery(*_size(sequences), [Batch.from_sequences(sequences, 0, sequences.num_sequences)])
            for sequences in cycle(batches)
        )
    }


STREAM_PROVIDERS: tuple[StreamProvider, ...] = (
    StreamProvider("UniBERT", "ours", _full_stream(0)),
    StreamProvider("UniBERT, 1 loader process", "ours", _full_stream(1), processes=2),
    StreamProvider("stage: reading", "stage", _reading),
    StreamProvider("stage: packing", "stage", _packing),
    StreamProvider("stage: masking", "stage", _masking),
    StreamProvider("stage: batches", "stage", _batches),
    *PEERS,
)
