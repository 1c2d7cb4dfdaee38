"""Packed sequences as numpy arrays: lanes assemble them, masking completes them, processes exchange them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Self

import numpy as np
import numpy.typing as npt

NOT_MASKED = -100


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """R sequences of S tokens: framed documents from the left, padding at the right.

    Each piece of a document that was cut counts as one of the D documents.
    """

    input_ids: npt.NDArray[np.int32]
    """Token ids, (R, S)."""
    documents_per_sequence: npt.NDArray[np.int64]
    """Number of documents in each sequence, (R,)."""
    document_lengths: npt.NDArray[np.int64]
    """Tokens of each document, frame included, (D,), in the order of the sequences."""
    document_languages: npt.NDArray[np.int64]
    """Language index of each document, (D,)."""
    origins: list[str]
    """Origin of each document as ``lang/train-000000.tar#document``, D of them."""
    document_vectors: npt.NDArray[np.float16] | None = None
    """See `unibert.stream.batch.Batch`, (D, H)."""

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the sequences of all parts, in order; all parts have the same sequence length."""
        if len(parts) == 1:
            return parts[0]
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        if parts[0].document_vectors is None:
            del columns["document_vectors"]
        origins = list(chain.from_iterable(columns.pop("origins")))
        return cls(origins=origins, **{name: np.concatenate(column) for name, column in columns.items()})

    @property
    def num_sequences(self) -> int:
        """Number of sequences, R."""
        return len(self.input_ids)

    def part(self, first: int, last: int) -> Sequences:
        """Return sequences ``first`` to ``last``, end excluded."""
        documents_per_sequence = self.documents_per_sequence[first:last]
        start = self.documents_per_sequence[:first].sum()
        documents = slice(start, start + documents_per_sequence.sum())
        return Sequences(
            input_ids=self.input_ids[first:last],
            documents_per_sequence=documents_per_sequence,
            document_lengths=self.document_lengths[documents],
            document_languages=self.document_languages[documents],
            origins=self.origins[documents],
            document_vectors=None if self.document_vectors is None else self.document_vectors[documents],
        )


@dataclass(frozen=True, kw_only=True)
class MaskedSequences(Sequences):
    """Sequences in which tokens are masked; ``input_ids`` hold what the model sees."""

    labels: npt.NDArray[np.int32]
    """Original tokens at the masked positions, -100 elsewhere, (R, S)."""
    sequence_indices: npt.NDArray[np.int64]
    """Index of each sequence in the run, (R,)."""

    def checksum(self) -> int:
        """Return the sum of the sequences' CRC-32 of input ids, labels and sequence index.

        The sum over all ranks identifies the global batch, whichever rank holds which sequences.
        """
        sequences = zip(self.sequence_indices.tolist(), self.input_ids, self.labels, strict=True)
        return sum(zlib.crc32(input_ids, zlib.crc32(labels, index % 2**32)) for index, input_ids, labels in sequences)
