"""Build a corpus: read, clean, filter, deduplicate, split, train the tokenizer, tokenise, write shards."""

from __future__ import annotations

import errno
import hashlib
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from unibert.corpus import selection
from unibert.corpus.cleaning import CleaningTask, clean, num_parts
from unibert.corpus.config import CorpusConfig
from unibert.corpus.dataset_card import DESCRIPTIONS, save_card
from unibert.corpus.decontamination import EvaluationText
from unibert.corpus.document_filter import load_document_filter
from unibert.corpus.document_tokenizer import DocumentTokenizer, corpus_tokenizer, find_tokenizer
from unibert.corpus.exclusions import ExclusionMatches, Exclusions, read_exclusions
from unibert.corpus.executors import run_tasks, write_corpus
from unibert.corpus.identification import load_identifier
from unibert.corpus.inputs import LISTED_NAMES, InputFile, find_inputs, unread_files
from unibert.corpus.manifest import MANIFEST_NAME, Manifest, Shard, Split
from unibert.corpus.near_duplicates import without_near_duplicates
from unibert.corpus.pretrained_tokenizer import PretrainedTokenizer
from unibert.corpus.report import REPORT_MARKDOWN, LanguageReport, save_report
from unibert.corpus.shards import ShardWriter, token_dtype
from unibert.corpus.spool import Index, difference, read_documents, read_index
from unibert.corpus.stubs import without_stubs
from unibert.corpus.text_tokenizer import use_one_thread
from unibert.corpus.tokenizer import train_tokenizer
from unibert.errors import UserError
from unibert.languages import language, language_code, nearest_code
from unibert.text import shortened

_SPOOL_NAME = ".spool"
_SAMPLED_DOCUMENTS = 200  # per language, to estimate its tokens per byte
_BATCH_DOCUMENTS = 256  # in memory at a time
_COUNTED_DOCUMENTS = 4096  # per task, when pieces are counted


@dataclass(frozen=True)
class _Selection:
    """The documents that are kept of a language, and the spools that hold them."""

    spools: list[Path]
    train: Index
    heldout: Index


@dataclass(frozen=True, kw_only=True)
class _ShardTask:
    language: str
    split: Split
    number: int
    spools: list[Path]
    documents: Index
    corpus_dir: Path
    tokenizer_sha256: str
    tokens_per_block: int


@dataclass(frozen=True)
class _CountTask:
    language: str
    spools: list[Path]
    documents: Index
    tokenizer: Path
    """Its folder."""
    tokenizer_sha256: str


def build_corpus(config: CorpusConfig) -> Manifest:
    """Build the corpus folder that ``config`` describes; ``manifest.json`` is written last.

    Under mpirun or srun every rank calls this; rank 0 coordinates and the others work.

    Raises:
        UserError: if inputs cannot be read, the output folder is in use, no document of a language is left, the text
            does not allow the vocabulary size, or the disk is full.
    """
    return write_corpus(lambda executor: _build(config, executor), config.output, config.workers)


def _build(config: CorpusConfig, executor: Executor | None) -> Manifest:
    output = Path(config.output)
    files = _chosen_files(config)
    exclusions = read_exclusions(config.exclude)
    if config.wrong_language.min_probability is not None or config.wrong_language.by_language:
        load_identifier()
    if config.document_filter is not None:
        load_document_filter(config.document_filter)  # a mistake in its name is said before the work
    evaluation = None
    if config.decontaminate:
        evaluation = EvaluationText(
            config.decontaminate, config.decontamination_words, config.decontamination_characters
        )
    unread = unread_files(config.inputs)
    for sentence in unread:
        print(sentence, file=sys.stderr)
    given = None if config.tokenizer is None else find_tokenizer(config.tokenizer)
    if config.trim_vocabulary is not None and not isinstance(given, PretrainedTokenizer):
        raise UserError(
            f"trim_vocabulary: {config.tokenizer} was trained by UniBERT; train a smaller one with vocab_size instead"
        )
    _prepare_output(output, config.overwrite)
    try:
        spools, reports, matches = _clean_files(config, files, exclusions, evaluation, executor)
        documents = {code: _included(paths, matches[code], reports[code]) for code, paths in spools.items()}
        if config.stubs.max_template_share is not None:
            documents = without_stubs(config.stubs, spools, documents, reports, executor)
        if config.near_duplicates.threshold is not None:
            documents = without_near_duplicates(config.near_duplicates, spools, documents, reports, executor)
        selections = {
            code: _select(config, code, spools[code], kept, reports[code]) for code, kept in documents.items()
        }
        _raise_if_nothing_is_left(config, selections, reports)
        selections = {code: kept for code, kept in selections.items() if len(kept.train)}
        tokenizer_sha256 = _write_tokenizer(config, given, selections, reports, executor)
        manifest = _write_shards(config, selections, tokenizer_sha256, reports, executor)
        notes = _notes(config, selections, exclusions, matches)
        if evaluation is not None:
            notes += evaluation.notes()
        save_report(output, reports, manifest, [*unread, *notes])
        save_card(output, config, files, reports, manifest)
        manifest.save(output)
    except BaseException as error:
        _clear(output)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"output: the disk of {output} is full; the build needs about twice the size of the text"
            ) from error
        raise
    shutil.rmtree(output / _SPOOL_NAME)
    _print_summary(output, reports, manifest, notes)
    return manifest


def _chosen_files(config: CorpusConfig) -> list[InputFile]:
    files = find_inputs(config.inputs)
    if config.languages is None:
        return files
    found = sorted({file.language for file in files})
    chosen = {language_code(code) for code in config.languages}
    missing = sorted(chosen.difference(found))
    if missing and (not config.skip_empty_languages or not chosen.intersection(found)):
        raise UserError(
            f"languages: the inputs hold no document in {', '.join(missing)}; they hold {', '.join(found)}; did you "
            f"mean {nearest_code(missing[0], found)!r}?"
        )
    return [file for file in files if file.language in chosen]


def _notes(
    config: CorpusConfig,
    selections: Mapping[str, _Selection],
    exclusions: Mapping[str, Exclusions],
    matches: Mapping[str, ExclusionMatches],
) -> list[str]:
    """Return sentences on what a user may not expect."""
    notes = []
    if unknown := [code for code in selections if not language(code).scripts]:
        notes.append(
            f"the scripts of {', '.join(unknown)} are not known; their documents were not checked for foreign scripts"
        )
    if alone := [
        code
        for code, kept in selections.items()
        if config.heldout_share and len(kept.train) > 1 and not len(kept.heldout)
    ]:
        notes.append(f"no document is held out of {', '.join(alone)}; all documents there have the same id")
    for code, excluded in exclusions.items():
        if code not in selections:
            notes.append(f"exclude: {len(excluded.entries):,} titles or ids are of {code}, which is not in this corpus")
        elif unmatched := excluded.unmatched(matches[code].entries):
            notes.append(
                f"exclude: {len(unmatched):,} of {len(excluded.entries):,} titles or ids of {code} matched no document "
                f"({shortened(unmatched, LISTED_NAMES)})"
            )
    return notes


def _print_summary(
    output: Path, reports: Mapping[str, LanguageReport], manifest: Manifest, notes: Iterable[str]
) -> None:
    for note in notes:
        print(note, file=sys.stderr)
    if cut_off := {code: report.cut_off_files for code, report in reports.items() if report.cut_off_files}:
        number = sum(cut_off.values())
        print(
            f"{number} input file{'s' * (number > 1)} ended too early ({', '.join(cut_off)}); what was read is kept, "
            f"see {output / REPORT_MARKDOWN}",
            file=sys.stderr,
        )
    num_tokens = sum(shard.tokens for shard in manifest.shards)
    print(
        f"{output}: {len(manifest.languages)} languages, {num_tokens:,} tokens in {len(manifest.shards):,} shards",
        file=sys.stderr,
    )


def _prepare_output(output: Path, overwrite: bool) -> None:
    """Create the folder; remove an older corpus (if ``overwrite``) or an interrupted build from it."""
    if output.exists():
        if not output.is_dir():
            raise UserError(f"output: {output} is a file; name a folder")
        if (output / MANIFEST_NAME).exists():
            if not overwrite:
                raise UserError(f"output: {output} already holds a corpus; name another folder or give --overwrite")
        elif any(output.iterdir()) and not (output / _SPOOL_NAME).exists():
            raise UserError(f"output: {output} is not empty and holds no corpus; name another folder")
    _clear(output)
    (output / _SPOOL_NAME).mkdir(parents=True)


def _clear(output: Path) -> None:
    """Remove all that a build has written, the manifest first, so that an incomplete corpus never looks complete."""
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    for name in DESCRIPTIONS:
        (output / name).unlink(missing_ok=True)
    shards = [shard for split in get_args(Split) for shard in output.glob(f"*/{split}-??????.tar*")]
    for shard in shards:
        shard.unlink()
    for folder in {shard.parent for shard in shards}:
        if not any(folder.iterdir()):
            folder.rmdir()
    shutil.rmtree(output / "tokenizer", ignore_errors=True)
    shutil.rmtree(output / _SPOOL_NAME, ignore_errors=True)


def _clean_files(
    config: CorpusConfig,
    files: list[InputFile],
    exclusions: Mapping[str, Exclusions],
    evaluation: EvaluationText | None,
    executor: Executor | None,
) -> tuple[dict[str, list[Path]], dict[str, LanguageReport], dict[str, ExclusionMatches]]:
    spool_dir = Path(config.output) / _SPOOL_NAME
    ngrams = None if evaluation is None else evaluation.save(spool_dir / "evaluation")
    tasks = [
        CleaningTask(
            file=file,
            part=part,
            parts=parts,
            spool=spool_dir / f"{number:06d}-{part:03d}.spool",
            filters=config.filters,
            wrong_language=config.wrong_language,
            near_duplicates=config.near_duplicates,
            exclusions=exclusions.get(file.language, Exclusions()),
            evaluation=ngrams,
            document_filter=config.document_filter,
            max_page_characters=config.max_page_characters,
        )
        for number, file in enumerate(files)
        for parts in [num_parts(file)]
        for part in range(parts)
    ]
    spools: dict[str, list[Path]] = defaultdict(list)
    reports: dict[str, LanguageReport] = defaultdict(LanguageReport)
    matches: dict[str, ExclusionMatches] = defaultdict(ExclusionMatches)
    for task in tasks:
        spools[task.file.language].append(task.spool)
    for file in files:
        reports[file.language].files += 1
    largest_first = sorted(tasks, key=lambda task: -task.file.path.stat().st_size / task.parts)
    cleaned = run_tasks(executor, clean, largest_first, "cleaning")
    for task, result in zip(largest_first, cleaned, strict=True):
        reports[task.file.language].add(result.counts)
        reports[task.file.language].contaminated += result.contaminated
        reports[task.file.language].prose.add(result.prose)
        reports[task.file.language].letters.update(result.letters)
        reports[task.file.language].samples.add(result.samples)
        matches[task.file.language].update(result.matches)
    return dict(sorted(spools.items())), reports, matches


def _included(spools: list[Path], matches: ExclusionMatches, report: LanguageReport) -> Index:
    """Return the documents of a language without those excluded and without copies."""
    index = read_index(spools)
    included = selection.without_titles(index, matches.targets)
    kept = selection.without_duplicates(included)
    report.count_dropped("excluded", difference(index, included), spools)
    report.count_dropped("duplicate", difference(included, kept), spools)
    return kept


def _select(config: CorpusConfig, code: str, spools: list[Path], kept: Index, report: LanguageReport) -> _Selection:
    train, heldout = selection.split_heldout(selection.shuffled(kept, code, config.seed), config.heldout_share)
    report.count_kept(kept, spools)
    return _Selection(spools, train, heldout)


def _raise_if_nothing_is_left(
    config: CorpusConfig, selections: dict[str, _Selection], reports: dict[str, LanguageReport]
) -> None:
    empty = {code: reports[code] for code, kept in selections.items() if not len(kept.train)}
    if empty and (not config.skip_empty_languages or len(empty) == len(selections)):
        causes = "; ".join(f"{code}: {report.read} read, dropped {report.reasons}" for code, report in empty.items())
        raise UserError(
            f"nothing is left of some languages ({causes}); "
            "loosen filters, leave those inputs out, or give --skip_empty_languages true"
        )


def _train_tokenizer(config: CorpusConfig, selections: dict[str, _Selection]) -> bytes:
    text_bytes = {code: int(kept.train["text_bytes"].sum(dtype=np.int64)) for code, kept in selections.items()}
    quotas = selection.sample_quotas(text_bytes, config.tokenizer_bytes, config.tokenizer_exponent)
    lines = (line for code, kept in selections.items() for line in _first_lines(kept.spools, kept.train, quotas[code]))
    return train_tokenizer(lines, vocab_size=config.vocab_size, character_coverage=config.character_coverage)


def _first_lines(spools: list[Path], documents: Index, quota: int) -> Iterator[str]:
    """Yield lines of documents, up to that with which they have ``quota`` bytes. A batch at a time is in memory."""
    documents = selection.first_documents(documents, quota)
    for first in range(0, len(documents), _BATCH_DOCUMENTS):
        for _, text in read_documents(spools, documents[first : first + _BATCH_DOCUMENTS]):
            for line in text.split("\n"):
                if quota <= 0:
                    return
                quota -= len(line.encode())
                yield line


def _write_tokenizer(
    config: CorpusConfig,
    given: bytes | PretrainedTokenizer | None,
    selections: dict[str, _Selection],
    reports: dict[str, LanguageReport],
    executor: Executor | None,
) -> str:
    """Write the ``tokenizer`` folder; return the SHA-256 of its model."""
    folder = Path(config.output) / "tokenizer"
    if isinstance(given, PretrainedTokenizer):
        tokenizer = given
        if config.trim_vocabulary is not None:
            counts = _count_pieces(config, given, selections, reports, executor)
            tokenizer = given.trimmed(counts, config.trim_vocabulary)
        tokenizer.save(folder, model_max_length=config.model_max_length)
        return hashlib.sha256(tokenizer.content.encode()).hexdigest()
    from unibert.corpus.fast_tokenizer import save_tokenizer  # imports transformers

    model = given or _train_tokenizer(config, selections)
    save_tokenizer(model, folder, model_max_length=config.model_max_length)
    return hashlib.sha256(model).hexdigest()


def _count_pieces(
    config: CorpusConfig,
    tokenizer: PretrainedTokenizer,
    selections: dict[str, _Selection],
    reports: dict[str, LanguageReport],
    executor: Executor | None,
) -> npt.NDArray[np.float64]:
    """Count how much each piece is used, (V,): its share of each language's tokens, summed with the weights of a
    tokenizer's training text."""
    folder = Path(config.output) / _SPOOL_NAME / "tokenizer"
    tokenizer.save(folder, model_max_length=config.model_max_length)
    digest = hashlib.sha256(tokenizer.content.encode()).hexdigest()
    tasks = [
        _CountTask(code, kept.spools, kept.train[first : first + _COUNTED_DOCUMENTS], folder, digest)
        for code, kept in selections.items()
        for first in range(0, len(kept.train), _COUNTED_DOCUMENTS)
    ]
    vocab_size = tokenizer.vocab_size
    counts = {code: np.zeros(vocab_size, np.int64) for code in selections}
    for task, task_counts in zip(tasks, run_tasks(executor, _count_task, tasks, "counting pieces"), strict=True):
        counts[task.language] += task_counts
    used = np.zeros(vocab_size)
    for code, kept in selections.items():
        reports[code].untrimmed_train_tokens = int(counts[code].sum())
        weight = float(kept.train["text_bytes"].sum(dtype=np.int64)) ** config.tokenizer_exponent
        used += weight * counts[code] / max(1, counts[code].sum())
    return used


def _write_shards(
    config: CorpusConfig,
    selections: dict[str, _Selection],
    tokenizer_sha256: str,
    reports: dict[str, LanguageReport],
    executor: Executor | None,
) -> Manifest:
    corpus_dir = Path(config.output)
    tokenizer = corpus_tokenizer(corpus_dir / "tokenizer", tokenizer_sha256)
    tasks = [
        _ShardTask(
            language=code,
            split=split,
            number=number,
            spools=kept.spools,
            documents=documents,
            corpus_dir=corpus_dir,
            tokenizer_sha256=tokenizer_sha256,
            tokens_per_block=config.tokens_per_block,
        )
        for code, kept in selections.items()
        for split, shards in _cut_into_shards(config, kept, tokenizer)
        for number, documents in enumerate(shards)
    ]
    vocab_size = tokenizer.vocab_size
    counts: dict[tuple[str, Split], npt.NDArray[np.int64]] = defaultdict(lambda: np.zeros(vocab_size, np.int64))
    shards: list[Shard] = []
    for shard, token_counts in run_tasks(executor, _write_shard, tasks, "tokenising"):
        shards.append(shard)
        counts[shard.language, shard.split] += token_counts
        counts["all", shard.split] += token_counts
        reports[shard.language].count_shard(shard)
        reports[shard.language].count_unknown(token_counts, tokenizer)
    return Manifest(
        shards=tuple(shards),
        vocab_size=vocab_size,
        token_dtype="uint16" if token_dtype(vocab_size) is np.uint16 else "uint32",
        tokenizer_sha256=tokenizer_sha256,
        special_ids=tokenizer.special_ids,
        document_filter=config.document_filter,
        unigram_entropy={
            key: selection.unigram_entropy(counts[key, "train"], counts[key, "heldout"])
            for key in ["all", *selections]
            if (key, "heldout") in counts
        },
    )


def _cut_into_shards(
    config: CorpusConfig, kept: _Selection, tokenizer: DocumentTokenizer
) -> list[tuple[Split, list[Index]]]:
    sample = kept.train[:_SAMPLED_DOCUMENTS]
    texts = [text for _, text in read_documents(kept.spools, sample)]
    sampled_tokens = sum(len(tokens) for tokens in tokenizer.encode_batch(texts))
    tokens_per_byte = sampled_tokens / int(sample["text_bytes"].sum(dtype=np.int64))
    parts: list[tuple[Split, Index]] = [("train", kept.train), ("heldout", kept.heldout)]
    return [
        (split, selection.cut_into_shards(documents, tokens_per_byte, config.tokens_per_shard))
        for split, documents in parts
    ]


def _write_shard(task: _ShardTask) -> tuple[Shard, npt.NDArray[np.int64]]:
    """Tokenise documents into one shard; return it and the number of occurrences of each token, (V,)."""
    tokenizer = corpus_tokenizer(task.corpus_dir / "tokenizer", task.tokenizer_sha256)
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    writer = ShardWriter(
        task.corpus_dir,
        task.language,
        task.split,
        task.number,
        vocab_size=len(counts),
        tokens_per_block=task.tokens_per_block,
    )
    with writer:
        for batch in _batches(task.spools, task.documents):
            encoded = tokenizer.encode_lines([text for _, text in batch])
            for (document_id, text), (tokens, lines) in zip(batch, encoded, strict=True):
                counts += np.bincount(tokens, minlength=len(counts))
                writer.write(document_id, tokens, len(text.encode()), lines)
    assert writer.shard is not None
    return writer.shard, counts


def _count_task(task: _CountTask) -> npt.NDArray[np.int64]:
    """Count the occurrences of each piece in documents, (V,)."""
    tokenizer = corpus_tokenizer(task.tokenizer, task.tokenizer_sha256)
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for batch in _batches(task.spools, task.documents):
        for tokens in tokenizer.encode_batch([text for _, text in batch]):
            counts += np.bincount(tokens, minlength=len(counts))
    return counts


def _batches(spools: list[Path], documents: Index) -> Iterator[list[tuple[str, str]]]:
    """Yield id and text of documents, as many at a time as are in memory."""
    use_one_thread()
    for first in range(0, len(documents), _BATCH_DOCUMENTS):
        yield read_documents(spools, documents[first : first + _BATCH_DOCUMENTS])
