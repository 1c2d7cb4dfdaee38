"""The first stage of a build: turns a part of an input file into a spool of clean documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from unibert.corpus.config import CorpusConfig, NearDuplicateConfig, WrongLanguageConfig
from unibert.corpus.decontamination import EvaluationNgrams
from unibert.corpus.document_filter import filter_digest, filtered
from unibert.corpus.exclusions import ExclusionMatches, Exclusions
from unibert.corpus.filters import DropReason, FilterConfig, drop_reason, letters_by_script
from unibert.corpus.identification import is_wrong_language
from unibert.corpus.inputs import InputFile
from unibert.corpus.journal import Journal, Stage, Unit, Values, content_key
from unibert.corpus.multistream import is_multistream
from unibert.corpus.near_duplicates import signature_path, with_signatures
from unibert.corpus.normalization import normalize
from unibert.corpus.prose_loss import PageSample, ProseLoss
from unibert.corpus.readers import Document, DocumentReader
from unibert.corpus.samples import DocumentSamples
from unibert.corpus.spool import index_path, write_spool
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
    letters: Counter[str] = field(default_factory=Counter)
    """Number of letters of the documents in the spool by script."""
    samples: DocumentSamples = field(default_factory=DocumentSamples)
    """Some of the dropped documents."""

    def drop(self, reason: str, document: Document) -> None:
        """Count a document that is dropped."""
        self.counts[reason] += 1
        self.samples.offer(reason, document)


@dataclass(frozen=True)
class Cleaned:
    """What the cleaning of a part of an input file has left."""

    language: str
    spool: Path
    result: CleaningResult


def clean_files(
    config: CorpusConfig,
    files: Sequence[InputFile],
    exclusions: Mapping[str, Exclusions],
    evaluation: EvaluationNgrams | None,
    journal: Journal,
) -> list[Cleaned]:
    """Clean the files; return their parts in order."""
    digests = {code: content_key(entries=excluded.entries) for code, excluded in exclusions.items()}
    units = [
        _unit(config, file, part, parts, exclusions, digests.get(file.language), evaluation, journal)
        for file in files
        for parts in [num_parts(file)]
        for part in range(parts)
    ]
    largest_first = sorted(
        range(len(units)), key=lambda number: -units[number].task.file.path.stat().st_size / units[number].task.parts
    )
    results = journal.results(CLEANING, [units[number] for number in largest_first])
    cleaned = dict(zip(largest_first, results, strict=True))
    return [Cleaned(unit.task.file.language, unit.task.spool, cleaned[number]) for number, unit in enumerate(units)]


def _unit(
    config: CorpusConfig,
    file: InputFile,
    part: int,
    parts: int,
    exclusions: Mapping[str, Exclusions],
    exclusions_digest: str | None,
    evaluation: EvaluationNgrams | None,
    journal: Journal,
) -> Unit[CleaningTask]:
    state = file.path.stat()
    shingles = config.near_duplicates
    wrong_language = config.wrong_language
    key = content_key(
        file=[file.path.resolve(), file.path.name, file.language, file.kind, state.st_size, state.st_mtime_ns],
        part=[part, parts],
        filters=config.filters,
        wrong_language=wrong_language.by_language.get(file.language, wrong_language.min_probability),
        shingles=None if shingles.threshold is None else [shingles.words, shingles.characters],
        exclusions=exclusions_digest,
        evaluation=None if evaluation is None else [evaluation.files, evaluation.sizes, evaluation.digest],
        document_filter=config.document_filter and [config.document_filter, filter_digest(config.document_filter)],
        max_page_characters=config.max_page_characters,
    )
    spool = journal.stage_folder(CLEANING.title) / f"{key}.spool"
    task = CleaningTask(
        file=file,
        part=part,
        parts=parts,
        spool=spool,
        filters=config.filters,
        wrong_language=wrong_language,
        near_duplicates=shingles,
        exclusions=exclusions.get(file.language, Exclusions()),
        evaluation=evaluation,
        document_filter=config.document_filter,
        max_page_characters=config.max_page_characters,
    )
    signatures = () if shingles.threshold is None else (signature_path(spool),)
    name = f"{file.path}, part {part + 1} of {parts}" if parts > 1 else str(file.path)
    return Unit(key, name, task, (spool, index_path(spool), *signatures))


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
    samples = DocumentSamples()
    reader = DocumentReader(
        task.file,
        task.part,
        task.parts,
        task.max_page_characters,
        task.exclusions,
        on_drop=samples.offer if task.document_filter is None else _offer_without_text(samples),
    )
    result = CleaningResult(reader.counts, reader.matches, samples=samples)
    documents = _kept(reader, task, result)
    if task.near_duplicates.threshold is not None:
        documents = with_signatures(documents, task.spool, task.near_duplicates)
    write_spool(task.spool, documents)
    return result


def cleaned(document: Document, filters: FilterConfig) -> tuple[str, DropReason | None, Counter[str]]:
    """Return the text of a document as it is kept, why a filter drops it, if one does, and its letters by script."""
    text = normalize(document.text)
    letters = letters_by_script(text)
    return text, drop_reason(text, letters, language(document.language), filters), letters


def _offer_without_text(samples: DocumentSamples) -> Callable[[str, Document], None]:
    """Return `offer` for documents that the user's function, which may remove personal data, has not seen."""
    return lambda reason, document: samples.offer(reason, replace(document, text="", wikitext=""))


def _kept(reader: DocumentReader, task: CleaningTask, result: CleaningResult) -> Iterator[Document]:
    measured = PageSample(task.file.path)
    for document in reader:
        if document in measured:
            result.prose.measure(document)
        if task.document_filter is not None:
            where = f"document {document.id} of {task.file.path}"
            chosen = filtered(task.document_filter, normalize(document.text), task.file.language, where)
            document = replace(document, text=chosen or "", wikitext="")
            if chosen is None:
                result.drop("document_filter", document)
                continue
        text, reason, letters = cleaned(document, task.filters)
        document = replace(document, text=text)
        if reason:
            result.drop(reason, document)
        elif is_wrong_language(text, task.file.language, task.wrong_language):
            result.drop("wrong_language", document)
        elif task.evaluation is not None and (sources := task.evaluation.sources(text)):
            result.drop("contaminated", document)
            result.contaminated.update(sources)
        else:
            result.letters.update(letters)
            yield document


def _values(result: CleaningResult) -> dict[str, Any]:
    return {
        "counts": result.counts,
        "excluded": sorted(result.matches.entries),
        "excluded_targets": sorted(result.matches.targets),
        "contaminated": result.contaminated,
        "prose": result.prose.content(),
        "letters": result.letters,
        "samples": asdict(result.samples),
    }


def _result(values: Values) -> CleaningResult:
    return CleaningResult(
        Counter(values["counts"]),
        ExclusionMatches(set(values["excluded"]), set(values["excluded_targets"])),
        Counter(values["contaminated"]),
        ProseLoss.of(values["prose"]),
        Counter(values["letters"]),
        DocumentSamples.of(values["samples"]),
    )


CLEANING = Stage("cleaning", clean, _values, _result)
