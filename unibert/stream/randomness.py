"""Random numbers that are a pure function of a seed and of what they are for.

Philox is counter-based: any stretch of its output is computed without the stretches before it. Only its raw words
are used, because numpy promises to keep those, and not the methods of ``Generator``, the same in every release.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

WORDS_PER_BLOCK = 4


class Purpose(IntEnum):
    """Keeps the random numbers of different decisions apart."""

    MIXTURE = 1
    EPOCH = 2
    WINDOW = 3
    MASKING = 4
    HELDOUT_ORDER = 5
    HELDOUT_MASKING = 6


def random_words(
    count: int, seed: int, purpose: Purpose, *indices: int, first_block: int = 0
) -> npt.NDArray[np.uint64]:
    """``count`` uniform 64-bit words, (count,), from block ``first_block`` of the sequence that belongs to
    (seed, purpose, indices); a block is four words, ``indices`` are at most three.
    """
    key = np.array([seed % 2**64, purpose], dtype=np.uint64)
    counter = np.array([first_block, *indices, 0, 0, 0][:4], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def permutation(count: int, seed: int, purpose: Purpose, *indices: int) -> npt.NDArray[np.int64]:
    """A uniform permutation of ``range(count)``, (count,)."""
    return np.argsort(random_words(count, seed, purpose, *indices), kind="stable")
