"""Packing pieces of documents into sequences of one length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Permutation = Callable[[int], Integers]
"""Returns a permutation of ``range(count)``, (count,)."""


@dataclass(frozen=True)
class Pieces:
    """P pieces of documents, each array (P,): ``length`` tokens from ``start`` on, in an array that holds all documents
    end to end, and the index of the ``document`` that they belong to."""

    document: Integers
    start: Integers
    length: Integers

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, index: Any) -> Pieces:
        return Pieces(self.document[index], self.start[index], self.length[index])

    def split(self, max_length: int) -> Pieces:
        """Cut into pieces of ``max_length`` tokens and a remainder, in the same order, without empty pieces."""
        counts = -(-self.length // max_length)
        offset = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) * max_length
        return Pieces(
            np.repeat(self.document, counts),
            np.repeat(self.start, counts) + offset,
            np.minimum(np.repeat(self.length, counts) - offset, max_length),
        )

    def rejoin(self) -> Pieces:
        """Join adjacent pieces of a document; return all in order of start."""
        pieces = self[np.argsort(self.start, kind="stable")]
        if not len(pieces):
            return pieces
        continues = (pieces.start[1:] == pieces.start[:-1] + pieces.length[:-1]) & (
            pieces.document[1:] == pieces.document[:-1]
        )
        first = np.flatnonzero(np.concatenate([[True], ~continues]))
        return Pieces(pieces.document[first], pieces.start[first], np.add.reduceat(pieces.length, first))


@dataclass(frozen=True)
class Packing:
    """Pieces in R sequences: sequence r holds pieces ``bounds[r]`` to ``bounds[r + 1]``, with bounds (R + 1,)."""

    pieces: Pieces
    bounds: Integers

    @property
    def num_sequences(self) -> int:
        return len(self.bounds) - 1

    def sequences(self, first: int, last: int) -> Packing:
        """Return sequences ``first`` to ``last``, end excluded."""
        bounds = self.bounds[first : last + 1]
        return Packing(self.pieces[bounds[0] : bounds[-1]], bounds - bounds[0])

    def reordered(self, order: Integers) -> Packing:
        """Return the same sequences, with sequence ``order[i]`` at place i."""
        counts = np.diff(self.bounds)[order]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        pieces = np.arange(bounds[-1]) + np.repeat(self.bounds[order] - bounds[:-1], counts)
        return Packing(self.pieces[pieces], bounds)


def pack_shuffled(
    documents: Pieces,
    sequence_length: int,
    frame: int,
    *,
    order_sequences: Permutation,
    order_documents: Permutation | None = None,
) -> Packing:
    """Split documents to fit into sequences, pack the pieces as `pack` does, and shuffle the sequences.

    Args:
        documents: documents, or what is left of them.
        sequence_length: tokens per sequence.
        frame: number of tokens that frame every piece.
        order_sequences: returns the order of the packed sequences.
        order_documents: returns the order in which documents are split and packed; None keeps theirs.
    """
    if order_documents is not None:
        documents = documents[order_documents(len(documents))]
    packing = pack(documents.split(sequence_length - frame), sequence_length, frame)
    return packing.reordered(order_sequences(packing.num_sequences))


def pack(pieces: Pieces, sequence_length: int, frame: int) -> Packing:
    """Pack pieces of at most ``sequence_length - frame`` tokens into sequences by best fit decreasing.

    Every piece takes ``frame`` tokens more than its own. Pieces of equal length are placed in their order.
    """
    pieces = pieces[np.argsort(-pieces.length, kind="stable")]
    sequence = np.array(_best_fit((pieces.length + frame).tolist(), sequence_length), dtype=np.int64)
    order = np.argsort(sequence, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(sequence))]) if len(sequence) else np.zeros(1, dtype=np.int64)
    return Packing(pieces[order], bounds)


def _best_fit(sizes: list[int], capacity: int) -> list[int]:
    """Return the sequence that each size goes to: the fullest one with room for it, else a new one."""
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    # Bit b is set while some sequence has b tokens free, so that a shift and the lowest set bit give the tightest fit.
    free_bits = 0
    num_sequences = 0
    sequences = []
    for size in sizes:
        fitting = free_bits >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            candidates = with_room[free]
            sequence = candidates.pop()
            if not candidates:
                free_bits ^= 1 << free
        else:
            free, sequence = capacity, num_sequences
            num_sequences += 1
        sequences.append(sequence)
        left = free - size
        with_room[left].append(sequence)
        free_bits |= 1 << left
    return sequences
