"""The work that all providers of the stream's benchmark are given: batches of a corpus's train documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from unibert.corpus.manifest import Manifest, Shard
from unibert.corpus.shards import Block
from unibert.corpus.special_ids import SpecialIds
from unibert.files import write_json
from unibert.stream.config import StreamConfig
from unibert.stream.reader import read_blocks
from unibert.stream.source import ShardSource
from unibert.stream.vocabulary import Vocabulary

SEQUENCES_NAME, FACTS_NAME = "sequences.npy", "corpus.json"

Side = Literal["ours", "stage", "peer"]
Setting = Literal["fixed", "usual", "bulk"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Which corpus, and which batches of it."""

    corpus: str
    folder: str
    """Where the peers' copies of the corpus lie."""
    sequence_length: int = 512
    batch_size: int = 64
    masking_rate: float = 0.3
    seed: int = 0

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of_corpus(Manifest.load(self.corpus))

    @property
    def shards(self) -> list[Shard]:
        """The train shards, language by language."""
        manifest = Manifest.load(self.corpus)
        return [shard for language in manifest.languages for shard in manifest.shards_of(language)]

    def sequences(self) -> npt.NDArray[np.unsignedinteger]:
        """The sequences that :func:`prepare_sequences` cut, mapped from the disk, (R, S)."""
        sequences: npt.NDArray[np.unsignedinteger] = np.load(Path(self.folder) / SEQUENCES_NAME, mmap_mode="r")
        return sequences


class Delivery(NamedTuple):
    """What a provider hands over at a time."""

    tokens: int
    """Without padding."""
    positions: int
    """With padding."""
    batches: list[Any]
    """Our batches, or mappings with ``input_ids`` and ``labels`` as int64 tensors (B, S); for a stage its product."""


Source = Callable[[], Iterator[Delivery]]
"""Sets up a pass over the corpus; what it returns does the work while it is iterated."""


@dataclass(frozen=True)
class StreamProvider:
    """One way to make batches.

    ``sources`` takes the work and returns the ways to choose from, by the option that makes them differ. It imports
    the provider's packages, and raises `NotAvailableError` or ImportError where they are missing. ``prepare`` writes
    the provider's copy of the corpus.
    """

    name: str
    side: Side
    sources: Callable[[Work], dict[str, Source]]
    setting: Setting = "fixed"
    """Of a peer: ``usual`` reads one sequence at a time, as its documentation does; ``bulk`` reads many."""
    prepare: Callable[[Work], None] | None = None
    processes: int = 1


def framed(block: Block, special_ids: SpecialIds) -> npt.NDArray[np.unsignedinteger]:
    """The block's documents end to end, each framed by special tokens."""
    lengths = block.lengths.astype(np.int64)
    ends = np.cumsum(lengths + special_ids.frame_tokens)
    flat = np.empty(ends[-1], dtype=block.tokens.dtype)
    begins = ends - lengths - special_ids.frame_tokens
    inner = np.ones(len(flat), dtype=bool)
    for place, token in enumerate(special_ids.prefix):
        flat[begins + place], inner[begins + place] = token, False
    for place, token in enumerate(reversed(special_ids.suffix), start=1):
        flat[ends - place], inner[ends - place] = token, False
    flat[inner] = block.tokens
    return flat


def cut_sequences(
    stretches: Iterable[npt.NDArray[np.unsignedinteger]], sequence_length: int
) -> Iterator[npt.NDArray[np.unsignedinteger]]:
    """Sequences of ``sequence_length`` tokens from stretches put end to end; a rest shorter than that is dropped."""
    waiting: list[npt.NDArray[np.unsignedinteger]] = []
    num_waiting = 0
    for stretch in stretches:
        waiting.append(stretch)
        num_waiting += len(stretch)
        if num_waiting >= sequence_length:
            flat = np.concatenate(waiting)
            end = num_waiting - num_waiting % sequence_length
            yield from flat[:end].reshape(-1, sequence_length)
            waiting, num_waiting = [flat[end:]], num_waiting - end


def prepare_sequences(work: Work) -> dict[str, Any]:
    """Cut the corpus into sequences for the peers that read such, and write what it holds.

    Returns:
        "languages", "shards", "documents", "tokens" (without frames), "median_length" (tokens), "vocab_size",
        "delivered_tokens" of a pass: the sequences' tokens.
    """
    source, shards, vocabulary = ShardSource(Path(work.corpus), StreamConfig()), work.shards, work.vocabulary
    blocks = [block for shard in shards for block in read_blocks(source, shard, vocabulary.size)]
    documents = (framed(block, vocabulary.special_ids) for block in blocks)
    sequences = np.stack(list(cut_sequences(documents, work.sequence_length)))
    np.save(Path(work.folder) / SEQUENCES_NAME, sequences)
    lengths = np.concatenate([block.lengths for block in blocks])
    facts = {
        "languages": len({shard.language for shard in shards}),
        "shards": len(shards),
        "documents": len(lengths),
        "tokens": int(lengths.sum()),
        "median_length": float(np.median(lengths)),
        "vocab_size": vocabulary.size,
        "delivered_tokens": sequences.size,
    }
    write_json(Path(work.folder) / FACTS_NAME, facts)
    return facts
