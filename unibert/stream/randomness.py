"""Random numbers that are a pure function of a seed and of their purpose.

Philox is counter-based: any part of its output can be computed without the parts before it. Only its raw words are
used: numpy guarantees that they stay the same in every release, which it does not for the methods of ``Generator``.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

WORDS_PER_BLOCK = 4


class Purpose(IntEnum):
    """What random numbers are used for; each purpose has numbers of its own."""

    MIXTURE = 1
    EPOCH = 2
    WINDOW = 3
    MASKING = 4
    HELDOUT_ORDER = 5
    HELDOUT_MASKING = 6


def random_words(
    count: int, seed: int, purpose: Purpose, *indices: int, first_block: int = 0
) -> npt.NDArray[np.uint64]:
    """Return ``count`` uniform 64-bit words, (count,), from block ``first_block`` on.

    Each (seed, purpose, indices) has its own sequence of words; a block is four words, ``indices`` are at most three.
    """
    key = np.array([seed % 2**64, purpose], dtype=np.uint64)
    counter = np.array([first_block, *indices, 0, 0, 0][:4], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def permutation(count: int, seed: int, purpose: Purpose, *indices: int) -> npt.NDArray[np.int64]:
    """Return a uniform permutation of ``range(count)``, (count,)."""
    return np.argsort(random_words(count, seed, purpose, *indices), kind="stable")
