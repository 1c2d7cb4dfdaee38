from itertools import pairwise

import numpy as np
import pytest

from unibert.stream.packing import Pieces, pack, pack_shuffled


def whole_documents(lengths: list[int]) -> Pieces:
    array = np.array(lengths)
    return Pieces(np.arange(len(array)), np.cumsum(array) - array, array)


def tokens_of(pieces: Pieces) -> list[tuple[int, int]]:
    """(document, token) of all pieces."""
    return [
        (document, token)
        for document, start, length in zip(pieces.document, pieces.start, pieces.length, strict=True)
        for token in range(start, start + length)
    ]


DOCUMENTS = whole_documents([1, 30, 31, 60, 0, 200, 29, 30, 7, 90, 1, 1, 15])


def test_splitting_loses_nothing_and_rejoining_undoes_it() -> None:
    pieces = DOCUMENTS.split(30)
    assert pieces.length.max() == 30
    assert pieces.length.min() == 1
    assert tokens_of(pieces) == tokens_of(DOCUMENTS)
    shuffled = pieces[np.random.default_rng(0).permutation(len(pieces))].rejoin()
    expected = DOCUMENTS[DOCUMENTS.length > 0]
    assert shuffled.start.tolist() == expected.start.tolist()
    assert shuffled.length.tolist() == expected.length.tolist()


def test_rejoining_keeps_what_has_gaps_apart() -> None:
    pieces = DOCUMENTS.split(30)
    kept = pieces[np.flatnonzero(pieces.start != 152)]
    assert len(pieces) == len(kept) + 1
    assert sorted(tokens_of(kept.rejoin())) == sorted(tokens_of(kept))
    assert [int(length) for length in kept.rejoin().length if length > 90] == [140]


@pytest.mark.parametrize("sequence_length", [8, 32, 100])
def test_sequences_hold_every_piece_once_and_no_more_than_fits(sequence_length: int) -> None:
    pieces = DOCUMENTS.split(sequence_length - 2)
    packing = pack(pieces, sequence_length, 2)
    assert sorted(tokens_of(packing.pieces)) == tokens_of(pieces)
    filled = np.add.reduceat(packing.pieces.length + 2, packing.bounds[:-1])
    assert filled.max() <= sequence_length
    order = np.random.default_rng(1).permutation(packing.num_sequences)
    moved = packing.reordered(order)
    for place, sequence in enumerate(order):
        assert tokens_of(moved.sequences(place, place + 1).pieces) == tokens_of(
            packing.sequences(sequence, sequence + 1).pieces
        )


def test_best_fit_takes_the_tightest_sequence() -> None:
    packing = pack(whole_documents([5, 4, 6]), 10, 0)
    sequences = [packing.pieces.length[start:end].tolist() for start, end in pairwise(packing.bounds)]
    assert sequences == [[6, 4], [5]]


def test_shuffled_packing_applies_both_orders() -> None:
    def reverse(count: int) -> np.ndarray:
        return np.arange(count)[::-1]

    shuffled = pack_shuffled(DOCUMENTS, 32, 2, order_documents=reverse, order_sequences=reverse)
    packing = pack(DOCUMENTS[::-1].split(30), 32, 2)
    assert tokens_of(shuffled.pieces) == tokens_of(packing.reordered(reverse(packing.num_sequences)).pieces)
    unshuffled = pack_shuffled(DOCUMENTS, 32, 2, order_sequences=np.arange)
    assert tokens_of(unshuffled.pieces) == tokens_of(pack(DOCUMENTS.split(30), 32, 2).pieces)


def test_nothing_to_pack() -> None:
    packing = pack(whole_documents([]), 16, 2)
    assert packing.num_sequences == 0
    assert packing.reordered(np.empty(0, dtype=np.int64)).num_sequences == 0
    assert len(packing.pieces.rejoin()) == 0
