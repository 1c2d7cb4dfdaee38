"""Packed sequences as numpy arrays: what lanes make, masking completes, and processes exchange."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Self

import numpy as np
import numpy.typing as npt

PAD, CLS, SEP, MASK = 0, 2, 3, 4
NUM_SPECIAL_TOKENS = 5
NOT_MASKED = -100


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """R sequences of S tokens: framed documents from the left, padding at the right.

    Documents are counted as they stand in the sequences: the pieces of one that was cut are D documents of their own.
    """

    input_ids: npt.NDArray[np.int32]
    """(R, S)."""
    documents_per_sequence: npt.NDArray[np.int64]
    """(R,)."""
    document_lengths: npt.NDArray[np.int64]
    """With the frame, (D,), in the order of the sequences."""
    document_languages: npt.NDArray[np.int64]
    """(D,)."""
    origins: list[str]
    """``lang/train-000000.tar#document``, of length D."""

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The sequences of all parts, in order; all have the same sequence length."""
        if len(parts) == 1:
            return parts[0]
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(cls)}
        origins = list(chain.from_iterable(columns.pop("origins")))
        return cls(origins=origins, **{name: np.concatenate(column) for name, column in columns.items()})

    @property
    def num_sequences(self) -> int:
        """R."""
        return len(self.input_ids)

    def part(self, first: int, last: int) -> Sequences:
        """Sequences ``first`` to ``last``, end excluded."""
        before, within = self.documents_per_sequence[:first].sum(), self.documents_per_sequence[first:last]
        documents = slice(before, before + within.sum())
        return Sequences(
            input_ids=self.input_ids[first:last],
            documents_per_sequence=within,
            document_lengths=self.document_lengths[documents],
            document_languages=self.document_languages[documents],
            origins=self.origins[documents],
        )


@dataclass(frozen=True, kw_only=True)
class MaskedSequences(Sequences):
    """Sequences whose ``input_ids`` show the masked text."""

    labels: npt.NDArray[np.int32]
    """The masked positions' own tokens, -100 elsewhere, (R, S)."""
    sequence_indices: npt.NDArray[np.int64]
    """Run-wide, (R,)."""

    def checksum(self) -> int:
        """Of inputs, labels and sequence indices: the CRC-32 of each sequence, added up, so that the sum over all ranks
        belongs to the global batch, whichever rank holds which sequences."""
        sequences = zip(self.sequence_indices.tolist(), self.input_ids, self.labels, strict=True)
        return sum(zlib.crc32(shown, zlib.crc32(own, index % 2**32)) for index, shown, own in sequences)
