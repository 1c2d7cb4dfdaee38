"""Selection of cleaned documents: duplicates, held-out split, shards, and the tokenizer's sample.

All decisions use the spools' indexes, hashes and counter-based generators, so that the order of work does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unibert.corpus.spool import Index, stable_hash


@dataclass(frozen=True)
class Selection:
    """The documents that are kept of a language, and the spools that hold them."""

    spools: list[Path]
    train: Index
    heldout: Index


def without_duplicates(index: Index) -> Index:
    """Return the first of every group of documents with equal text."""
    _, first = np.unique(index["text_hash"], return_index=True)
    return index[np.sort(first)]


def without_titles(index: Index, titles: Iterable[str]) -> Index:
    """Return the documents whose title's key is none of ``titles``."""
    hashes = np.array([stable_hash(title) for title in titles], np.uint64)
    return index[~np.isin(index["title_hash"], hashes)]


def shuffled(index: Index, language: str, seed: int) -> Index:
    """Return the documents in a random order that depends on the seed and the language only."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, stable_hash(language)], dtype=np.uint64)))
    return index[generator.permutation(len(index))]


def split_heldout(index: Index, share: float) -> tuple[Index, Index]:
    """Split into (train, held-out) documents; those with the same id stay together, in every language and corpus.

    A document is held out if the hash of its id is in the lowest ``share`` of the range. If that takes none or all of a
    language's documents, only the id with the lowest hash is held out, unless it is the only one.
    """
    hashes = index["id_hash"]
    heldout = hashes < np.uint64(int(share * 2**64))
    if share > 0 and len(index) and (heldout.all() or not heldout.any()):
        heldout = hashes == hashes.min()
        heldout &= not heldout.all()
    return index[~heldout], index[heldout]


def cut_into_shards(index: Index, tokens_per_byte: float, tokens_per_shard: int) -> list[Index]:
    """Cut documents, in their order, into shards of nearly equal text.

    Args:
        index: documents of one split.
        tokens_per_byte: estimate for their text.
        tokens_per_shard: tokens that a shard should have.
    """
    if not len(index):
        return []
    total_bytes = int(index["text_bytes"].sum(dtype=np.int64))
    count = max(1, round(total_bytes * tokens_per_byte / tokens_per_shard))
    bytes_before = np.cumsum(index["text_bytes"], dtype=np.int64) - index["text_bytes"]
    shard = bytes_before * count // total_bytes
    return [index[shard == number] for number in np.unique(shard)]


def sample_quotas(text_bytes: Mapping[str, int], total: int, exponent: float) -> dict[str, int]:
    """Return the bytes to take of each language: proportional to its bytes ** exponent, at most ``total`` together.

    What a language lacks is taken from the others, in the same proportion.
    """
    quotas: dict[str, int] = {}
    open_languages = {code: float(text_bytes[code]) ** exponent for code in sorted(text_bytes)}
    while open_languages:
        rest = total - sum(quotas.values())
        scale = rest / sum(open_languages.values())
        full = [code for code, weight in open_languages.items() if text_bytes[code] <= weight * scale]
        if not full:
            return quotas | {code: int(weight * scale) for code, weight in open_languages.items()}
        for code in full:
            quotas[code] = text_bytes[code]
            del open_languages[code]
    return quotas


def first_documents(index: Index, quota: int) -> Index:
    """Return the leading documents that together have at least ``quota`` bytes, or all."""
    bytes_before = np.cumsum(index["text_bytes"], dtype=np.int64) - index["text_bytes"]
    return index[bytes_before < quota]


def unigram_entropy(train: npt.NDArray[np.int64], heldout: npt.NDArray[np.int64]) -> float:
    """Return the cross-entropy, nats per token, of held-out counts (V,) under add-one-smoothed train counts (V,)."""
    log_probability = np.log(train + 1.0) - np.log(train.sum() + len(train))
    return float(-(heldout @ log_probability) / heldout.sum())
