"""The first stage of a build: turns a part of an input file into a spool of clean documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from unibert.corpus.config import NearDuplicateConfig, WrongLanguageConfig
from unibert.corpus.decontamination import EvaluationNgrams
from unibert.corpus.document_filter import filtered
from unibert.corpus.exclusions import ExclusionMatches, Exclusions
from unibert.corpus.filters import DropReason, FilterConfig, drop_reason
from unibert.corpus.identification import is_wrong_language
from unibert.corpus.inputs import InputFile
from unibert.corpus.multistream import is_multistream
from unibert.corpus.near_duplicates import with_signatures
from unibert.corpus.normalization import normalize
from unibert.corpus.prose_loss import PageSample, ProseLoss
from unibert.corpus.readers import Document, DocumentReader
from unibert.corpus.spool import write_spool
from unibert.languages import language

# Their number depends on the file alone, because parts decide which of two equal pages comes first. A part of a
# multistream dump reads its share; a part of another reads the whole dump and cleans its share of the pages. Cleaning
# takes some three times as long as reading, so more parts than this would do little else than read.
_BYTES_PER_PART, _MAX_PARTS = 512 << 20, 16
_BYTES_PER_RANGE, _MAX_RANGES = 64 << 20, 256


@dataclass(frozen=True, kw_only=True)
class CleaningTask:
    """One part of one input file."""

    file: InputFile
    part: int
    parts: int
    spool: Path
    filters: FilterConfig
    wrong_language: WrongLanguageConfig
    near_duplicates: NearDuplicateConfig
    exclusions: Exclusions
    evaluation: EvaluationNgrams | None
    document_filter: str | None
    max_page_characters: int


@dataclass
class CleaningResult:
    """What a task has read and dropped."""

    counts: Counter[str]
    """Numbers of documents read, dropped by reason, and of cut-off files."""
    matches: ExclusionMatches
    contaminated: Counter[str] = field(default_factory=Counter)
    """Number of documents dropped for each evaluation set with which they share text."""
    prose: ProseLoss = field(default_factory=ProseLoss)
    """What was lost of the visible prose."""


def num_parts(file: InputFile) -> int:
    """Return the number of tasks that share a file."""
    size = file.path.stat().st_size
    if file.kind != "wiki" or size <= _BYTES_PER_RANGE:
        return 1
    if is_multistream(file.path):
        return min(_MAX_RANGES, 1 + size // _BYTES_PER_RANGE)
    return min(_MAX_PARTS, 1 + size // _BYTES_PER_PART)


def clean(task: CleaningTask) -> CleaningResult:
    """Write the task's spool; return what was read, dropped, matched and lost."""
    reader = DocumentReader(task.file, task.part, task.parts, task.max_page_characters, task.exclusions)
    result = CleaningResult(reader.counts, reader.matches)
    documents = _kept(reader, task, result)
    if task.near_duplicates.threshold is not None:
        documents = with_signatures(documents, task.spool, task.near_duplicates)
    write_spool(task.spool, documents)
    return result


def cleaned(document: Document, filters: FilterConfig) -> tuple[str, DropReason | None]:
    """Return the text of a document as it is kept, and why a filter drops it, if one does."""
    text = normalize(document.text)
    return text, drop_reason(text, language(document.language), filters)


def _kept(reader: DocumentReader, task: CleaningTask, result: CleaningResult) -> Iterator[Document]:
    measured = PageSample(task.file.path)
    for document in reader:
        if document in measured:
            result.prose.measure(document)
        if task.document_filter is not None:
            where = f"document {document.id} of {task.file.path}"
            chosen = filtered(task.document_filter, normalize(document.text), task.file.language, where)
            if chosen is None:
                result.counts["document_filter"] += 1
                continue
            document = replace(document, text=chosen)
        text, reason = cleaned(document, task.filters)
        if reason:
            result.counts[reason] += 1
        elif is_wrong_language(text, task.file.language, task.wrong_language):
            result.counts["wrong_language"] += 1
        elif task.evaluation is not None and (sources := task.evaluation.sources(text)):
            result.counts["contaminated"] += 1
            result.contaminated.update(sources)
        else:
            yield replace(document, text=text)
