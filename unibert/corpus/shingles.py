"""Hashes of n-grams of words and characters, by which documents are compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

from unibert.corpus.spool import stable_hash

Hashes = npt.NDArray[np.uint64]

# Thai, Lao, Tibetan, Burmese, Khmer, kana, Han: scripts that do not put spaces between words
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_FACTOR = 0x9E3779B97F4A7C15
_hash_of_word = lru_cache(1 << 18)(stable_hash)


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case: runs of letters, marks and numbers."""
    text = text.casefold()
    for character in set(text):
        if _separates(character):
            text = text.replace(character, " ")
    return text.split()


@cache
def _separates(character: str) -> bool:
    return unicodedata.category(character)[0] not in "LMN"


def word_hashes(words: list[str]) -> Hashes:
    """Return the hashes of words, (words,)."""
    return np.fromiter(map(_hash_of_word, words), np.uint64, len(words))


def character_hashes(words: list[str]) -> Hashes:
    """Return the hashes of the words' characters in scripts without spaces, (characters,); others are left out."""
    characters = "".join(_UNSPACED.findall("".join(words)))
    return _mixed(np.frombuffer(characters.encode("utf-32-le"), np.uint32).astype(np.uint64))


def ngram_hashes(units: Hashes, size: int) -> Hashes:
    """Return the hashes of all runs of ``size`` units, (units - size + 1,), empty if there are fewer units."""
    count = len(units) - size + 1
    if count < 1:
        return units[:0]
    powers, inverses = _powers(1 << len(units).bit_length())
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(units * powers[: len(units)])])
    return _mixed((sums[size:] - sums[:-size]) * inverses[:count])  # Σ unit · factor^position in the run


def joint_hashes(columns: Iterable[Hashes]) -> Hashes:
    """Return a hash of each row of numbers, (rows,), from the columns, (rows,) each."""
    return _mixed(np.add.reduce([column * _power(number) for number, column in enumerate(columns)]))


@cache
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Return the powers of the factor and of its inverse modulo 2^64, from 0, (count,) each."""
    bases = (np.full(count, base, np.uint64) for base in (_FACTOR, pow(_FACTOR, -1, 1 << 64)))
    powers, inverses = (np.multiply.accumulate(np.concatenate([np.ones(1, np.uint64), base[1:]])) for base in bases)
    return powers, inverses


@cache
def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(_FACTOR, exponent, 1 << 64))


def _mixed(hashes: Hashes) -> Hashes:
    """Spread the differences of 64-bit numbers over all their bits: the finaliser of SplitMix64 (Steele 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
