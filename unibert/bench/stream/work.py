"""The work of all providers in the stream's benchmark: batches of a corpus's train documents."""

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

SEQUENCES_NAME, SUMMARY_NAME = "sequences.npy", "corpus.json"

Side = Literal["ours", "stage", "peer"]
Setting = Literal["fixed", "usual", "bulk"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A corpus, and the batches to make of it."""

    corpus: str
    folder: str
    """Folder of the peers' copies of the corpus."""
    sequence_length: int
    batch_size: int
    masking_rate: float
    seed: int

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of_corpus(Manifest.load(self.corpus))

    @property
    def shards(self) -> list[Shard]:
        """The train shards, by language."""
        manifest = Manifest.load(self.corpus)
        return [shard for language in manifest.languages for shard in manifest.shards_of(language)]

    def sequences(self) -> npt.NDArray[np.unsignedinteger]:
        """The sequences (R, S) that `prepare_sequences` cut, memory-mapped."""
        sequences: npt.NDArray[np.unsignedinteger] = np.load(Path(self.folder) / SEQUENCES_NAME, mmap_mode="r")
        return sequences


class Delivery(NamedTuple):
    """A unit of a provider's output."""

    tokens: int
    """Number of tokens, without padding."""
    positions: int
    """Number of positions, with padding."""
    batches: list[Any]
    """UniBERT's batches, or mappings with ``input_ids`` and ``labels``, int64 tensors (B, S); for a stage its
    product."""


Source = Callable[[], Iterator[Delivery]]
"""Set up a pass over the corpus; the work is done while the result is iterated."""


@dataclass(frozen=True)
class StreamProvider:
    """One implementation of the loader.

    ``sources`` takes the work and returns a source for each option. It imports the provider's packages, and raises
    `NotAvailableError` or ImportError where they are missing. ``prepare`` writes the provider's copy of the corpus.
    """

    name: str
    side: Side
    sources: Callable[[Work], dict[str, Source]]
    setting: Setting = "fixed"
    """For a peer: ``usual`` reads one sequence at a time, as in its documentation; ``bulk`` reads many."""
    prepare: Callable[[Work], None] | None = None
    processes: int = 1


def frame_documents(block: Block, special_ids: SpecialIds) -> npt.NDArray[np.unsignedinteger]:
    """Concatenate the block's documents, each framed by special tokens."""
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
    arrays: Iterable[npt.NDArray[np.unsignedinteger]], sequence_length: int
) -> Iterator[npt.NDArray[np.unsignedinteger]]:
    """Cut concatenated arrays into sequences of ``sequence_length`` tokens; a shorter rest is dropped."""
    pending: list[npt.NDArray[np.unsignedinteger]] = []
    num_pending = 0
    for array in arrays:
        pending.append(array)
        num_pending += len(array)
        if num_pending >= sequence_length:
            flat = np.concatenate(pending)
            end = num_pending - num_pending % sequence_length
            yield from flat[:end].reshape(-1, sequence_length)
            pending, num_pending = [flat[end:]], num_pending - end


def prepare_sequences(work: Work) -> dict[str, Any]:
    """Cut the corpus into sequences for the peers, and write them with a summary of the corpus.

    Returns:
        "languages", "shards", "documents", "tokens" (without frames), "median_length" (tokens), "vocab_size",
        "delivered_tokens" (tokens of all sequences).
    """
    source, shards, vocabulary = ShardSource(Path(work.corpus), StreamConfig()), work.shards, work.vocabulary
    blocks = [block for shard in shards for block in read_blocks(source, shard, vocabulary.size)]
    documents = (frame_documents(block, vocabulary.special_ids) for block in blocks)
    sequences = np.stack(list(cut_sequences(documents, work.sequence_length)))
    np.save(Path(work.folder) / SEQUENCES_NAME, sequences)
    lengths = np.concatenate([block.lengths for block in blocks])
    summary = {
        "languages": len({shard.language for shard in shards}),
        "shards": len(shards),
        "documents": len(lengths),
        "tokens": int(lengths.sum()),
        "median_length": float(np.median(lengths)),
        "vocab_size": vocabulary.size,
        "delivered_tokens": sequences.size,
    }
    write_json(Path(work.folder) / SUMMARY_NAME, summary)
    return summary
