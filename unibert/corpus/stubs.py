"""Stubs that a program wrote from a template: documents that mostly consist of phrases which many others have.

The articles of a template differ in names and numbers, which may be most of their words, so that they are no near
duplicates. What they have in common are phrases: runs of words that occur in many documents of the language. They are
counted in a sample of the language, since a template that matters has many documents there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unibert.corpus.config import StubConfig
from unibert.corpus.journal import Journal, Unit, array_stage, content_key
from unibert.corpus.report import LanguageReport
from unibert.corpus.shingles import Hashes, character_hashes, ngram_hashes, word_hashes, words_of
from unibert.corpus.spool import Index, identities, read_batches

_SAMPLED_DOCUMENTS = 20_000
_TASK_DOCUMENTS, _MAX_TASKS = 4096, 64  # of a language; each task has a copy of its phrases
_JUDGED_UNITS = 300  # at the beginning of a document, so that long documents do not fill the sample


@dataclass(frozen=True)
class _Task:
    spools: list[Path]
    documents: Index
    config: StubConfig
    phrases: Hashes
    """Hashes of the phrases of templates, sorted; empty where they are to be found."""


def without_stubs(
    config: StubConfig,
    spools: Mapping[str, list[Path]],
    documents: Mapping[str, Index],
    reports: Mapping[str, LanguageReport],
    journal: Journal,
) -> dict[str, Index]:
    """Return the documents of each language that no template explains, and count the others.

    The sample of a language has the lowest hashes of text, so it does not depend on the order of documents.
    """
    samples = {code: index[np.argsort(index["text_hash"])[:_SAMPLED_DOCUMENTS]] for code, index in documents.items()}
    # The phrases are the same for any share, and are not searched again for another.
    search = replace(config, max_template_share=None)
    searches = [
        _unit(code, _Task(spools[code], sample, search, np.zeros(0, np.uint64))) for code, sample in samples.items()
    ]
    phrases = dict(zip(documents, journal.results(_FINDING_TEMPLATES, searches), strict=True))
    units = [
        (code, _unit(code, _Task(spools[code], part, config, phrases[code])))
        for code, index in documents.items()
        for part in np.array_split(index, min(_MAX_TASKS, 1 + len(index) // _TASK_DOCUMENTS))
    ]
    parts: dict[str, list[Index]] = {code: [] for code in documents}
    results = journal.results(_FINDING_STUBS, [unit for _, unit in units])
    for (code, unit), are_stubs in zip(units, results, strict=True):
        parts[code].append(unit.task.documents[~are_stubs])
        reports[code].count_dropped("stub", unit.task.documents[are_stubs], spools[code])
    return {code: np.concatenate(kept) for code, kept in parts.items()}


def _unit(code: str, task: _Task) -> Unit[_Task]:
    key = content_key(texts=identities(task.documents), config=task.config, phrases=task.phrases)
    return Unit(key, f"{len(task.documents):,} documents of {code}", task)


def _phrases(task: _Task) -> Hashes:
    found = [np.unique(ngrams) for ngrams, _ in _ngrams(task)]
    if not found:
        return task.phrases
    phrases, count = np.unique(np.concatenate(found), return_counts=True)
    return phrases[count >= task.config.documents]


def _are_stubs(task: _Task) -> npt.NDArray[np.bool_]:
    assert task.config.max_template_share is not None
    shares = [_share_in(task.phrases, ngrams, size) for ngrams, size in _ngrams(task)]
    return np.array(shares, np.float64) > task.config.max_template_share


def _share_in(phrases: Hashes, ngrams: Hashes, size: int) -> float:
    """Return the share of a document's words that are in phrases."""
    if not len(ngrams) or not len(phrases):
        return 0.0
    are_phrases = phrases.take(np.searchsorted(phrases, ngrams), mode="clip") == ngrams
    return float(np.mean(np.convolve(are_phrases, np.ones(size)) > 0))


def _ngrams(task: _Task) -> Iterator[tuple[Hashes, int]]:
    """Yield the hashes of the n-grams at the beginning of each document, (n-grams,), and their size.

    They are of characters if the scripts without spaces have more of those than the document has words. Words with a
    digit are equal.
    """
    for batch in read_batches(task.spools, task.documents):
        for _, text in batch:
            words = words_of(text)
            characters = character_hashes(words)
            if len(characters) > len(words):
                yield ngram_hashes(characters[:_JUDGED_UNITS], task.config.characters), task.config.characters
            else:
                words = ["0" if any(map(str.isdecimal, word)) else word for word in words[:_JUDGED_UNITS]]
                yield ngram_hashes(word_hashes(words), task.config.words), task.config.words


_FINDING_TEMPLATES = array_stage("finding templates", _phrases)
_FINDING_STUBS = array_stage("finding stubs", _are_stubs)
