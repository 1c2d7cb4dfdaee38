"""Build a corpus: read, clean, filter, deduplicate, split, train the tokenizer, tokenise, write shards."""

from __future__ import annotations

import errno
import hashlib
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from unibert.corpus import selection
from unibert.corpus.cleaning import CleaningTask, clean, num_parts, read_exclusions
from unibert.corpus.config import CorpusConfig
from unibert.corpus.executors import mpi_executor, process_executor, run_tasks, started_under_mpi
from unibert.corpus.manifest import MANIFEST_NAME, Manifest, Shard, Split
from unibert.corpus.readers import InputFile, find_inputs
from unibert.corpus.report import REPORT_JSON, REPORT_MARKDOWN, LanguageReport, save_report
from unibert.corpus.shards import ShardWriter, token_dtype
from unibert.corpus.spool import Index, read_documents, read_index
from unibert.corpus.tokenizer import MODEL_NAME, encode, load_tokenizer, train_tokenizer
from unibert.errors import UserError
from unibert.languages import LANGUAGES, language

_SPOOL_NAME = ".spool"
_SAMPLED_DOCUMENTS = 200  # per language, to estimate its tokens per byte


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
    tokens_per_block: int


def build_corpus(config: CorpusConfig) -> Manifest:
    """Build the corpus folder that ``config`` describes; ``manifest.json`` is written last.

    Under mpirun or srun every rank calls this; rank 0 coordinates and the others work.

    Raises:
        UserError: if inputs cannot be read, the output folder is in use, no document of a language is left, the text
            does not allow the vocabulary size, or the disk is full.
    """
    if not started_under_mpi():
        with process_executor(config.workers) as executor:
            return _build(config, executor)
    with mpi_executor() as executor:
        if executor is not None:
            return _build(config, executor)
    try:
        return Manifest.load(config.output)
    except UserError as error:
        raise UserError("rank 0 could not build the corpus; its message says why") from error


def _build(config: CorpusConfig, executor: Executor | None) -> Manifest:
    output = Path(config.output)
    languages = {language(code).code for code in config.languages or LANGUAGES}
    files = [file for file in find_inputs(config.inputs) if file.language in languages]
    if not files:
        raise UserError(f"languages: the inputs hold no document in {', '.join(sorted(languages))}")
    excluded = read_exclusions(config.exclude)
    model = load_tokenizer(Path(config.tokenizer)).serialized_model_proto() if config.tokenizer else None
    _prepare_output(output, config.overwrite)
    try:
        spools, reports = _clean_files(config, files, excluded, executor)
        selections = {code: _select(config, code, paths, reports[code]) for code, paths in spools.items()}
        _raise_if_nothing_is_left(config, selections, reports)
        selections = {code: kept for code, kept in selections.items() if len(kept.train)}
        model = model or _train_tokenizer(config, selections)
        manifest = _write_shards(config, selections, model, reports, executor)
        save_report(output, reports, manifest)
        manifest.save(output)
    except BaseException as error:
        _clear(output)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"output: the disk of {output} is full; the build needs about twice the size of the text"
            ) from error
        raise
    shutil.rmtree(output / _SPOOL_NAME)
    _print_summary(output, reports, manifest)
    return manifest


def _print_summary(output: Path, reports: Mapping[str, LanguageReport], manifest: Manifest) -> None:
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
    for name in (REPORT_JSON, REPORT_MARKDOWN):
        (output / name).unlink(missing_ok=True)
    for code in LANGUAGES:
        if (folder := output / code).is_dir():
            for shard in folder.glob("*-??????.tar*"):
                shard.unlink()
            if not any(folder.iterdir()):
                folder.rmdir()
    shutil.rmtree(output / "tokenizer", ignore_errors=True)
    shutil.rmtree(output / _SPOOL_NAME, ignore_errors=True)


def _clean_files(
    config: CorpusConfig, files: list[InputFile], excluded: dict[str, frozenset[str]], executor: Executor | None
) -> tuple[dict[str, list[Path]], dict[str, LanguageReport]]:
    tasks = [
        CleaningTask(
            file=file,
            part=part,
            parts=num_parts(file),
            spool=Path(config.output) / _SPOOL_NAME / f"{number:06d}-{part:02d}.spool",
            filters=config.filters,
            excluded=excluded.get(file.language, frozenset()),
            max_page_characters=config.max_page_characters,
        )
        for number, file in enumerate(files)
        for part in range(num_parts(file))
    ]
    spools: dict[str, list[Path]] = defaultdict(list)
    reports: dict[str, LanguageReport] = defaultdict(LanguageReport)
    for task in tasks:
        spools[task.file.language].append(task.spool)
    largest_first = sorted(tasks, key=lambda task: -task.file.path.stat().st_size)
    for task, counts in zip(largest_first, run_tasks(executor, clean, largest_first, "cleaning"), strict=True):
        reports[task.file.language].add(counts)
    return dict(sorted(spools.items())), reports


def _select(config: CorpusConfig, code: str, spools: list[Path], report: LanguageReport) -> _Selection:
    index = read_index(spools)
    kept = selection.without_duplicates(index)
    report.add(Counter(duplicate=len(index) - len(kept)))
    train, heldout = selection.split_heldout(selection.shuffled(kept, code, config.seed), config.heldout_share)
    report.count_kept(kept)
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
    num_lines = {code: int(kept.train["lines"].sum(dtype=np.int64)) for code, kept in selections.items()}
    text_bytes = {code: int(kept.train["text_bytes"].sum(dtype=np.int64)) for code, kept in selections.items()}
    quotas = selection.sample_quotas(text_bytes, num_lines, config.tokenizer_sentences, config.tokenizer_exponent)
    lines = (
        line
        for code, kept in selections.items()
        for line in _lines(kept.spools, selection.first_lines(kept.train, quotas[code]))[: quotas[code]]
    )
    return train_tokenizer(lines, vocab_size=config.vocab_size, character_coverage=config.character_coverage)


def _lines(spools: list[Path], documents: Index) -> list[str]:
    return [line for _, text in read_documents(spools, documents) for line in text.split("\n")]


def _write_shards(
    config: CorpusConfig,
    selections: dict[str, _Selection],
    model: bytes,
    reports: dict[str, LanguageReport],
    executor: Executor | None,
) -> Manifest:
    from unibert.corpus.fast_tokenizer import save_tokenizer  # imports transformers

    corpus_dir = Path(config.output)
    save_tokenizer(model, corpus_dir / "tokenizer", model_max_length=config.model_max_length)
    processor = load_tokenizer(corpus_dir / "tokenizer")
    tasks = [
        _ShardTask(
            language=code,
            split=split,
            number=number,
            spools=kept.spools,
            documents=documents,
            corpus_dir=corpus_dir,
            tokens_per_block=config.tokens_per_block,
        )
        for code, kept in selections.items()
        for split, shards in _cut_into_shards(config, kept, processor)
        for number, documents in enumerate(shards)
    ]
    vocab_size = processor.GetPieceSize()
    counts: dict[tuple[str, Split], npt.NDArray[np.int64]] = defaultdict(lambda: np.zeros(vocab_size, np.int64))
    shards: list[Shard] = []
    for shard, token_counts in run_tasks(executor, _write_shard, tasks, "tokenising"):
        shards.append(shard)
        counts[shard.language, shard.split] += token_counts
        counts["all", shard.split] += token_counts
        reports[shard.language].count_shard(shard)
    return Manifest(
        shards=tuple(shards),
        vocab_size=vocab_size,
        token_dtype="uint16" if token_dtype(vocab_size) is np.uint16 else "uint32",
        tokenizer_sha256=hashlib.sha256(model).hexdigest(),
        unigram_entropy={
            key: selection.unigram_entropy(counts[key, "train"], counts[key, "heldout"])
            for key in ["all", *selections]
            if (key, "heldout") in counts
        },
    )


def _cut_into_shards(
    config: CorpusConfig, kept: _Selection, processor: sentencepiece.SentencePieceProcessor
) -> list[tuple[Split, list[Index]]]:
    sample = kept.train[:_SAMPLED_DOCUMENTS]
    sampled_tokens = sum(len(encode(processor, text)) for _, text in read_documents(kept.spools, sample))
    tokens_per_byte = sampled_tokens / int(sample["text_bytes"].sum(dtype=np.int64))
    parts: list[tuple[Split, Index]] = [("train", kept.train), ("heldout", kept.heldout)]
    return [
        (split, selection.cut_into_shards(documents, tokens_per_byte, config.tokens_per_shard))
        for split, documents in parts
    ]


def _write_shard(task: _ShardTask) -> tuple[Shard, npt.NDArray[np.int64]]:
    """Tokenise documents into one shard; return it and the number of occurrences of each token, (V,)."""
    processor = _loaded_tokenizer(task.corpus_dir / "tokenizer" / MODEL_NAME)
    counts = np.zeros(processor.GetPieceSize(), np.int64)
    writer = ShardWriter(
        task.corpus_dir,
        task.language,
        task.split,
        task.number,
        vocab_size=len(counts),
        tokens_per_block=task.tokens_per_block,
    )
    with writer:
        for document_id, text in read_documents(task.spools, task.documents):
            tokens = np.array(encode(processor, text))
            counts += np.bincount(tokens, minlength=len(counts))
            writer.write(document_id, tokens, len(text.encode()))
    assert writer.shard is not None
    return writer.shard, counts


@cache
def _loaded_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    return load_tokenizer(path)
