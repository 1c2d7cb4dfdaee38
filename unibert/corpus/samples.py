"""A few documents that a build keeps and a few that it drops for each reason, for people to look at.

Which ones depends on hashes, so the same are chosen for any number of processes and any order of work.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unibert.corpus.readers import Document
from unibert.corpus.spool import Index, read_documents, stable_hash
from unibert.files import write_atomically

SAMPLES_NAME = "samples.json"
KEPT = "kept"
"""Key of the samples that are no dropped documents."""

_PER_REASON, _KEPT_DOCUMENTS = 2, 3
_CHARACTERS = 300  # at the beginning of a document
# Half a character, as JSON may have, cannot be written as UTF-8; a page must not obey controls of JSON lines
_UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, order=True)
class DocumentSample:
    """The beginning of a document."""

    rank: int
    """Hash of its id or text; the lowest ones are chosen."""
    id: str
    title: str
    """Empty if it is not known."""
    text: str
    """At most 300 characters, of the source of a page that was not converted."""


@dataclass
class DocumentSamples:
    """The samples of a language by outcome, ``kept`` or the reason of dropping; equal for any order of `add`."""

    chosen: dict[str, list[DocumentSample]] = field(default_factory=dict)
    """At most 2 of each reason and 3 that are kept, by rank."""

    def offer(self, reason: str, document: Document) -> None:
        """Consider a dropped document. Its text is shown; if it is empty, its wikitext."""
        rank = stable_hash(document.id)
        chosen = self.chosen.get(reason, [])
        if len(chosen) < _PER_REASON or rank <= chosen[-1].rank:
            text = document.text or document.wikitext
            self._take(reason, [_sample(rank, document.id, document.title, text)])

    def offer_spooled(self, outcome: str, documents: Index, spools: Sequence[Path]) -> None:
        """Consider documents of spools, (documents,) of `unibert.corpus.spool.INDEX_DTYPE`, by their texts' hashes."""
        lowest = documents[np.argsort(documents["text_hash"], kind="stable")[: _most(outcome)]]
        hashes = lowest["text_hash"].tolist()
        texts = read_documents(spools, lowest)
        samples = [_sample(rank, entry[0], "", entry[1]) for rank, entry in zip(hashes, texts, strict=True)]
        self._take(outcome, samples)

    def add(self, other: DocumentSamples) -> None:
        """Add the samples of another part of the language."""
        for outcome, samples in other.chosen.items():
            self._take(outcome, samples)

    def content(self) -> dict[str, Any]:
        """Return the entry of samples.json."""
        return {
            outcome: [{"id": sample.id, "title": sample.title, "text": sample.text} for sample in samples]
            for outcome, samples in sorted(self.chosen.items())
        }

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> DocumentSamples:
        """Return the samples whose fields, as `dataclasses.asdict` gives them, are given."""
        return cls(
            {outcome: [DocumentSample(**one) for one in samples] for outcome, samples in fields["chosen"].items()}
        )

    def _take(self, outcome: str, samples: Sequence[DocumentSample]) -> None:
        if samples:
            self.chosen[outcome] = sorted({*self.chosen.get(outcome, ()), *samples})[: _most(outcome)]


def save_samples(corpus_dir: Path, samples: Mapping[str, DocumentSamples]) -> None:
    """Write ``samples.json`` into the corpus folder: by language and outcome."""
    content = {code: chosen.content() for code, chosen in sorted(samples.items())}
    write_atomically(corpus_dir / SAMPLES_NAME, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _most(outcome: str) -> int:
    return _KEPT_DOCUMENTS if outcome == KEPT else _PER_REASON


def _sample(rank: int, *fields: str) -> DocumentSample:
    return DocumentSample(
        rank, *(_UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", field[:_CHARACTERS]) for field in fields)
    )
