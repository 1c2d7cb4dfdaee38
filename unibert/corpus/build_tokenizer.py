"""The tokenizer of a build: trained on a sample of its text, or given, whole or trimmed to what the text uses."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unibert.corpus import selection
from unibert.corpus.config import CorpusConfig
from unibert.corpus.document_tokenizer import corpus_tokenizer, find_tokenizer
from unibert.corpus.journal import Journal, Unit, array_stage, content_key
from unibert.corpus.output_folder import SPOOL_NAME
from unibert.corpus.pretrained_tokenizer import PretrainedTokenizer
from unibert.corpus.report import LanguageReport
from unibert.corpus.selection import Selection
from unibert.corpus.spool import Index, read_batches
from unibert.corpus.text_tokenizer import use_one_thread
from unibert.corpus.tokenizer import train_tokenizer
from unibert.errors import UserError

_COUNTED_DOCUMENTS = 4096  # per task, when pieces are counted


@dataclass(frozen=True)
class _TrainingTask:
    samples: list[tuple[list[Path], Index, int]]
    """Of each language: spools, documents, and number of their bytes to take."""
    vocab_size: int
    character_coverage: float


@dataclass(frozen=True)
class _CountTask:
    language: str
    spools: list[Path]
    documents: Index
    tokenizer: Path
    """Its folder."""
    tokenizer_sha256: str


def given_tokenizer(config: CorpusConfig) -> bytes | PretrainedTokenizer | None:
    """Return the tokenizer that ``config`` names, None if one is to be trained.

    Raises:
        UserError: if there is no such tokenizer, or it cannot serve.
    """
    if config.tokenizer is None:
        return None
    replaced = _replaced_corpus(config)
    given = find_tokenizer(config.tokenizer if replaced is None or not replaced.exists() else str(replaced))
    if config.trim_vocabulary is not None and not isinstance(given, PretrainedTokenizer):
        raise UserError(
            f"trim_vocabulary: {config.tokenizer} was trained by UniBERT; train a smaller one with vocab_size instead"
        )
    return given


def write_tokenizer(
    config: CorpusConfig,
    given: bytes | PretrainedTokenizer | None,
    selections: Mapping[str, Selection],
    reports: Mapping[str, LanguageReport],
    journal: Journal,
) -> str:
    """Write the ``tokenizer`` folder; return the SHA-256 of its model."""
    if isinstance(given, PretrainedTokenizer):
        tokenizer = given
        if config.trim_vocabulary is not None:
            counts = _count_pieces(config, given, selections, reports, journal)
            tokenizer = given.trimmed(counts, config.trim_vocabulary)
        tokenizer.save(_empty_folder(config), model_max_length=config.model_max_length)
        return hashlib.sha256(tokenizer.content.encode()).hexdigest()
    from unibert.corpus.fast_tokenizer import save_tokenizer  # imports transformers

    model = given or _train_tokenizer(config, selections, journal)
    save_tokenizer(model, _empty_folder(config), model_max_length=config.model_max_length)
    return hashlib.sha256(model).hexdigest()


def _empty_folder(config: CorpusConfig) -> Path:
    """Return the path of the tokenizer's folder, where there is none now.

    If a corpus is replaced by one with its own tokenizer, that is kept until the end.
    """
    folder = Path(config.output) / "tokenizer"
    if (replaced := _replaced_corpus(config)) is not None and folder.exists() and not replaced.exists():
        replaced.parent.mkdir(exist_ok=True)
        folder.rename(replaced)
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _replaced_corpus(config: CorpusConfig) -> Path | None:
    """Return the folder that keeps the tokenizer of the corpus which is replaced; None if another was given."""
    output = Path(config.output)
    if config.tokenizer is None or not Path(config.tokenizer).resolve().is_relative_to(output.resolve()):
        return None
    return output / SPOOL_NAME / "replaced" / "tokenizer"


def _train_tokenizer(config: CorpusConfig, selections: Mapping[str, Selection], journal: Journal) -> bytes:
    text_bytes = {code: int(kept.train["text_bytes"].sum(dtype=np.int64)) for code, kept in selections.items()}
    quotas = selection.sample_quotas(text_bytes, config.tokenizer_bytes, config.tokenizer_exponent)
    samples = [
        (kept.spools, selection.first_documents(kept.train, quotas[code]), quotas[code])
        for code, kept in selections.items()
    ]
    task = _TrainingTask(samples, config.vocab_size, config.character_coverage)
    key = content_key(
        texts=[[sample["text_hash"], quota] for _, sample, quota in samples],
        vocab_size=config.vocab_size,
        character_coverage=config.character_coverage,
    )
    (model,) = journal.results(_TRAINING, [Unit(key, "tokenizer", task)])
    return bytes(model.tobytes())


def _train(task: _TrainingTask) -> npt.NDArray[np.uint8]:
    """Return the bytes of the trained model."""
    lines = (line for sample in task.samples for line in _first_lines(*sample))
    model = train_tokenizer(lines, vocab_size=task.vocab_size, character_coverage=task.character_coverage)
    return np.frombuffer(model, np.uint8)


def _first_lines(spools: list[Path], documents: Index, quota: int) -> Iterator[str]:
    """Yield lines of documents, up to that with which they have ``quota`` bytes."""
    for batch in read_batches(spools, documents):
        for _, text in batch:
            for line in text.split("\n"):
                if quota <= 0:
                    return
                quota -= len(line.encode())
                yield line


def _count_pieces(
    config: CorpusConfig,
    tokenizer: PretrainedTokenizer,
    selections: Mapping[str, Selection],
    reports: Mapping[str, LanguageReport],
    journal: Journal,
) -> npt.NDArray[np.float64]:
    """Count how much each piece is used, (V,): its share of each language's tokens, summed with the weights of a
    tokenizer's training text."""
    folder = journal.folder / "whole-tokenizer"
    tokenizer.save(folder, model_max_length=config.model_max_length)
    digest = hashlib.sha256(tokenizer.content.encode()).hexdigest()
    tasks = [
        _CountTask(code, kept.spools, kept.train[first : first + _COUNTED_DOCUMENTS], folder, digest)
        for code, kept in selections.items()
        for first in range(0, len(kept.train), _COUNTED_DOCUMENTS)
    ]
    units = [
        Unit(
            content_key(texts=task.documents["text_hash"], tokenizer=digest),
            f"{len(task.documents):,} documents of {task.language}",
            task,
        )
        for task in tasks
    ]
    vocab_size = tokenizer.vocab_size
    counts = {code: np.zeros(vocab_size, np.int64) for code in selections}
    for number, task_counts in journal.run(_COUNTING, units):
        counts[tasks[number].language] += task_counts
    used = np.zeros(vocab_size)
    for code, kept in selections.items():
        reports[code].untrimmed_train_tokens = int(counts[code].sum())
        weight = float(kept.train["text_bytes"].sum(dtype=np.int64)) ** config.tokenizer_exponent
        used += weight * counts[code] / max(1, counts[code].sum())
    return used


def _count(task: _CountTask) -> npt.NDArray[np.int64]:
    """Count the occurrences of each piece in documents, (V,)."""
    use_one_thread()
    tokenizer = corpus_tokenizer(task.tokenizer, task.tokenizer_sha256)
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for batch in read_batches(task.spools, task.documents):
        tokens = np.concatenate(tokenizer.encode_batch([text for _, text in batch]))
        counts += np.bincount(tokens, minlength=len(counts))
    return counts


_TRAINING = array_stage("training the tokenizer", _train)
_COUNTING = array_stage("counting pieces", _count)
