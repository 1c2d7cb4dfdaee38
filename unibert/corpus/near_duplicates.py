"""Documents that are nearly equal, found by MinHash and locality-sensitive hashing (Broder 1997).

The share of equal numbers in two signatures estimates the Jaccard similarity of two documents' sets of shingles.
Signatures are cut into bands; only documents that are equal in a band are compared. Signatures are computed with the
cleaning, in parallel; the comparison takes the documents in the corpus's order, so its result depends on the texts and
their order alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from unibert.corpus.config import NearDuplicateConfig
from unibert.corpus.journal import Journal, Stage, Unit, array_stage, content_key
from unibert.corpus.readers import Document
from unibert.corpus.report import LanguageReport
from unibert.corpus.shingles import character_hashes, joint_hashes, ngram_hashes, word_hashes, words_of
from unibert.corpus.spool import Index, difference, identities
from unibert.files import replacing

_PERMUTATIONS = 128  # numbers in a signature; the estimate's standard deviation is at most 1 / (2 √128) = 0.044
_FOUND = 0.95  # share of pairs at the threshold that have an equal band


@dataclass(frozen=True)
class ComparisonTask:
    """Documents to compare with one another, in the corpus's order."""

    parts: list[tuple[Path, npt.NDArray[np.uint32]]]
    """Spools, and the rows of their documents that take part."""
    threshold: float


def signature(text: str, config: NearDuplicateConfig) -> npt.NDArray[np.uint32]:
    """Return the MinHash signature of a text's shingles, (128,)."""
    words = words_of(text)
    units = word_hashes(words)
    shingles = np.concatenate(
        [
            ngram_hashes(units, max(1, min(config.words, len(units)))),
            ngram_hashes(character_hashes(words), config.characters),
        ]
    )
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, [0, len(shingles)], _PERMUTATIONS, 0)
    return np.array(matrix.to_rows()[0], np.uint32)


def with_signatures(documents: Iterable[Document], spool: Path, config: NearDuplicateConfig) -> Iterator[Document]:
    """Yield the documents, and write their signatures to `signature_path`."""
    with replacing(signature_path(spool)) as partial, partial.open("wb") as file:
        for document in documents:
            file.write(signature(document.text, config).tobytes())
            yield document


def without_near_duplicates(
    config: NearDuplicateConfig,
    spools: Mapping[str, list[Path]],
    documents: Mapping[str, Index],
    reports: Mapping[str, LanguageReport],
    journal: Journal,
) -> dict[str, Index]:
    """Return the documents of each language that are no near duplicates of others, and count those that are.

    ``documents`` are in the order of their spools, beside which `with_signatures` has written signatures.
    """
    assert config.threshold is not None
    kept = _distinct(_COMPARING, config, [{code: index} for code, index in documents.items()], spools, journal)
    _count_dropped("near_duplicate", documents, kept, spools, reports)
    if config.across_languages:
        text_bytes = {code: int(index["text_bytes"].sum(dtype=np.int64)) for code, index in kept.items()}
        largest_first = sorted(kept, key=lambda code: (-text_bytes[code], code))
        within = kept
        kept = _distinct(
            _COMPARING_LANGUAGES, config, [{code: within[code] for code in largest_first}], spools, journal
        )
        _count_dropped("near_duplicate_in_another_language", within, kept, spools, reports)
    return {code: kept[code] for code in documents}


def _distinct(
    stage: Stage[ComparisonTask, npt.NDArray[np.bool_]],
    config: NearDuplicateConfig,
    groups: list[dict[str, Index]],
    spools: Mapping[str, list[Path]],
    journal: Journal,
) -> dict[str, Index]:
    """Return what is left of each language if the documents of each group are compared with one another."""
    assert config.threshold is not None
    units = []
    for group in groups:
        parts = [
            (spool, index["row"][index["spool"] == number])
            for code, index in group.items()
            for number, spool in enumerate(spools[code])
        ]
        key = content_key(
            texts=[identities(index) for index in group.values()],
            threshold=config.threshold,
            shingles=[config.words, config.characters],
        )
        units.append(Unit(key, ", ".join(group), ComparisonTask(parts, config.threshold)))
    kept = {}
    for group, dropped in zip(groups, journal.results(stage, units), strict=True):
        ends = np.cumsum([len(index) for index in group.values()])
        for (code, index), dropped_here in zip(group.items(), np.split(dropped, ends[:-1]), strict=True):
            kept[code] = index[~dropped_here]
    return kept


def _count_dropped(
    reason: str,
    before: Mapping[str, Index],
    after: Mapping[str, Index],
    spools: Mapping[str, list[Path]],
    reports: Mapping[str, LanguageReport],
) -> None:
    for code, index in after.items():
        reports[code].count_dropped(reason, difference(before[code], index), spools[code])


def find_near_duplicates(task: ComparisonTask) -> npt.NDArray[np.bool_]:
    """Return which documents to drop, (documents,): those with an earlier one that is kept and nearly equal.

    A document is compared with the first kept document of each of its buckets. The memory grows by some 100 bytes a
    document; signatures stay on disk.
    """
    signatures = _Signatures(task.parts)
    buckets, num_buckets = _shared_buckets(signatures, task.threshold)
    first_kept = np.full(num_buckets, -1, np.int64)
    dropped = np.zeros(len(signatures), np.bool_)
    for document in np.flatnonzero((buckets >= 0).any(axis=1)).tolist():
        shared = buckets[document][buckets[document] >= 0]
        own = signatures.row(document)
        others = np.unique(first_kept[shared])
        if any(np.mean(signatures.row(other) == own) >= task.threshold for other in others[others >= 0].tolist()):
            dropped[document] = True
        else:
            first_kept[shared] = np.where(first_kept[shared] < 0, document, first_kept[shared])
    return dropped


class _Signatures:
    """The signatures of a task's documents, on disk, as if they were one array (documents, 128)."""

    def __init__(self, parts: list[tuple[Path, npt.NDArray[np.uint32]]]) -> None:
        self._files = [
            (np.memmap(signature_path(spool), np.uint32, "r").reshape(-1, _PERMUTATIONS), rows)
            for spool, rows in parts
            if len(rows)
        ]
        self._starts = np.cumsum([0, *(len(rows) for _, rows in self._files)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def columns(self, first: int, last: int) -> npt.NDArray[np.uint64]:
        """Return the numbers ``first`` to before ``last`` of all signatures, (documents, last - first)."""
        columns = [file[:, first:last][rows] for file, rows in self._files]
        return np.concatenate([np.zeros((0, last - first), np.uint32), *columns]).astype(np.uint64)

    def row(self, document: int) -> npt.NDArray[np.uint32]:
        """Return the signature of a document, (128,)."""
        number = int(np.searchsorted(self._starts, document, "right")) - 1
        file, rows = self._files[number]
        return file[rows[document - self._starts[number]]]


def _shared_buckets(signatures: _Signatures, threshold: float) -> tuple[npt.NDArray[np.int32], int]:
    """Return the number of each document's bucket in each band, (documents, bands), and how many there are.

    -1 stands for buckets with one document.
    """
    rows = _rows_in_band(threshold)
    bands = _PERMUTATIONS // rows
    buckets = np.empty((len(signatures), bands), np.int32)
    num_buckets = 0
    for band in range(bands):
        values = joint_hashes(signatures.columns(band * rows, (band + 1) * rows).T)
        _, bucket, count = np.unique(values, return_inverse=True, return_counts=True)
        is_shared = count > 1
        number = np.where(is_shared, num_buckets + np.cumsum(is_shared) - 1, -1)
        buckets[:, band] = number[bucket]
        num_buckets += int(is_shared.sum())
    return buckets, num_buckets


def _rows_in_band(threshold: float) -> int:
    """Return the most numbers in a band with which pairs at the threshold share a band often enough."""
    return max(
        rows
        for rows in range(1, _PERMUTATIONS // 2 + 1)
        if rows == 1 or 1 - (1 - threshold**rows) ** (_PERMUTATIONS // rows) >= _FOUND
    )


def signature_path(spool: Path) -> Path:
    """Return the path of the signatures of a spool's documents."""
    return spool.with_suffix(".minhash")


_COMPARING = array_stage("comparing", find_near_duplicates)
_COMPARING_LANGUAGES = array_stage("comparing languages", find_near_duplicates)
