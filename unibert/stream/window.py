"""A window: the documents of a few shards in memory, and the sequences assembled from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from unibert.corpus.manifest import Shard
from unibert.corpus.shards import Block, pieces_of
from unibert.corpus.special_ids import SpecialIds
from unibert.stream.packing import Packing, Pieces
from unibert.stream.reader import read_blocks
from unibert.stream.sequences import Sequences
from unibert.stream.source import ShardSource
from unibert.stream.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Window:
    """Documents end to end, with the language and origin of each."""

    tokens: npt.NDArray[np.unsignedinteger]
    """Tokens of all documents, (T,)."""
    lengths: npt.NDArray[np.int64]
    """Tokens of each document, (D,)."""
    languages: npt.NDArray[np.int64]
    """Language index of each document, (D,)."""
    origins: list[str]
    """Origin of each document as ``lang/train-000000.tar#document``, D of them."""
    skipped: dict[str, int]
    """Number of damaged blocks, for the shards that have any."""
    special_ids: SpecialIds
    """Those of the corpus."""
    piece_length: int | None = None
    """Tokens of the pieces that a teacher read; the next field holds its vectors."""
    vectors: npt.NDArray[np.float16] | None = None
    """A teacher's vectors of each document's pieces, end to end, (N, H)."""

    def documents(self) -> Pieces:
        """Return every document as one piece."""
        return Pieces(np.arange(len(self.lengths)), self._starts, self.lengths)

    def sequences(self, packing: Packing, sequence_length: int) -> Sequences:
        """Assemble the packing's sequences: every piece framed by special tokens, padding at the right."""
        pieces, special = packing.pieces, self.special_ids
        framed = pieces.length + special.frame_tokens
        pieces_per_sequence = np.diff(packing.bounds)
        piece_offset = np.cumsum(framed) - framed
        sequence_offset = np.arange(packing.num_sequences) * sequence_length
        first_offset = piece_offset[packing.bounds[:-1]]
        begin = piece_offset + np.repeat(sequence_offset - first_offset, pieces_per_sequence)
        end = begin + framed

        flat = np.full(packing.num_sequences * sequence_length, special.pad, dtype=np.int32)
        for place, token in enumerate(special.prefix):
            flat[begin + place] = token
        for place, token in enumerate(reversed(special.suffix), start=1):
            flat[end - place] = token
        text_begin = begin + len(special.prefix)
        spans = zip(text_begin.tolist(), pieces.start.tolist(), pieces.length.tolist(), strict=True)
        for target, start, length in spans:
            flat[target : target + length] = self.tokens[start : start + length]
        return Sequences(
            input_ids=flat.reshape(packing.num_sequences, sequence_length),
            documents_per_sequence=pieces_per_sequence,
            document_lengths=framed,
            document_languages=self.languages[pieces.document],
            origins=[self.origins[document] for document in pieces.document.tolist()],
            document_vectors=self._vectors_of(pieces),
        )

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """Place of each document's first token, (D,)."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def _first_vectors(self) -> npt.NDArray[np.int64]:
        """Row of each document's first vector, (D,)."""
        assert self.piece_length is not None
        counts = pieces_of(self.lengths, self.piece_length)
        return np.cumsum(counts) - counts

    def _vectors_of(self, pieces: Pieces) -> npt.NDArray[np.float16] | None:
        """Return the teacher's vector of each piece, NaN for a piece that is none of those that it read, (P, H)."""
        if self.vectors is None:
            return None
        assert self.piece_length is not None
        offset = pieces.start - self._starts[pieces.document]
        length_there = np.minimum(self.lengths[pieces.document] - offset, self.piece_length)
        was_read = (offset % self.piece_length == 0) & (pieces.length == length_there)
        vectors = np.full((len(pieces), self.vectors.shape[1]), np.nan, dtype=np.float16)
        rows = self._first_vectors[pieces.document] + offset // self.piece_length
        vectors[was_read] = self.vectors[rows[was_read]]
        return vectors


def load_window(
    source: ShardSource, shards: Iterable[tuple[int, Shard]], vocabulary: Vocabulary, piece_length: int | None = None
) -> Window:
    """Read the shards of (language index, shard) pairs, in order; with ``piece_length``, also vectors of such pieces.

    Raises:
        UserError: for a missing or unreadable shard.
    """
    blocks: list[Block] = []
    languages: list[int] = []
    origins: list[str] = []
    skipped: dict[str, int] = {}
    for language, shard in shards:
        intact = list(read_blocks(source, shard, vocabulary.size, piece_length))
        if len(intact) < shard.blocks:
            skipped[shard.path] = skipped.get(shard.path, 0) + shard.blocks - len(intact)
        for block in intact:
            languages += [language] * len(block.ids)
            origins += [f"{shard.path}#{document}" for document in block.ids]
        blocks += intact
    vectors = [block.vectors for block in blocks if block.vectors is not None]
    if not blocks:
        blocks = [Block([], np.empty(0, np.uint32), np.empty(0, np.uint32))]
    return Window(
        tokens=np.concatenate([block.tokens for block in blocks]),
        lengths=np.concatenate([block.lengths for block in blocks]).astype(np.int64),
        languages=np.array(languages, dtype=np.int64),
        origins=origins,
        skipped=skipped,
        special_ids=vocabulary.special_ids,
        piece_length=piece_length,
        vectors=np.concatenate(vectors) if vectors else None,
    )
