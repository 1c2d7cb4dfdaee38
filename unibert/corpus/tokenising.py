"""The last stage of a build: turns the kept documents into shards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unibert.corpus import selection
from unibert.corpus.config import CorpusConfig
from unibert.corpus.document_tokenizer import DocumentTokenizer, corpus_tokenizer
from unibert.corpus.journal import Journal, Stage, Unit, Values, content_key
from unibert.corpus.manifest import Manifest, Shard, Split
from unibert.corpus.output_folder import remove_empty_folders, shard_files
from unibert.corpus.report import LanguageReport
from unibert.corpus.selection import Selection
from unibert.corpus.shards import ShardWriter, shard_path, token_dtype
from unibert.corpus.spool import Index, identities, read_batches, read_documents
from unibert.corpus.text_tokenizer import use_one_thread

_SAMPLED_DOCUMENTS = 200  # per language, to estimate its tokens per byte

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Documents to tokenise into one shard."""

    language: str
    split: Split
    number: int
    spools: list[Path]
    documents: Index
    corpus_dir: Path
    tokenizer_sha256: str
    tokens_per_block: int


def write_shards(
    config: CorpusConfig,
    selections: Mapping[str, Selection],
    tokenizer_sha256: str,
    reports: Mapping[str, LanguageReport],
    journal: Journal,
) -> Manifest:
    """Write the shards; return the manifest, which is not written."""
    corpus_dir = Path(config.output)
    tokenizer = corpus_tokenizer(corpus_dir / "tokenizer", tokenizer_sha256)
    units = [
        _unit(
            ShardTask(
                language=code,
                split=split,
                number=number,
                spools=kept.spools,
                documents=documents,
                corpus_dir=corpus_dir,
                tokenizer_sha256=tokenizer_sha256,
                tokens_per_block=config.tokens_per_block,
            )
        )
        for code, kept in selections.items()
        for split, shards in _cut_into_shards(config, kept, tokenizer)
        for number, documents in enumerate(shards)
    ]
    vocab_size = tokenizer.vocab_size
    counts: dict[tuple[str, Split], Counts] = defaultdict(lambda: np.zeros(vocab_size, np.int64))
    shards: dict[int, Shard] = {}
    for unit, (shard, token_counts) in journal.run(_TOKENISING, units, shard_files(corpus_dir)):
        shards[unit] = shard
        counts[shard.language, shard.split] += token_counts
        counts["all", shard.split] += token_counts
        reports[shard.language].count_shard(shard)
        reports[shard.language].count_unknown(token_counts, tokenizer)
    remove_empty_folders(corpus_dir)
    return Manifest(
        shards=tuple(shards[unit] for unit in range(len(units))),
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


def _unit(task: ShardTask) -> Unit[ShardTask]:
    path = task.corpus_dir / shard_path(task.language, task.split, task.number)
    key = content_key(
        path=path.relative_to(task.corpus_dir),
        documents=identities(task.documents),
        tokenizer=task.tokenizer_sha256,
        tokens_per_block=task.tokens_per_block,
    )
    return Unit(key, str(path), task, (path,))


def _cut_into_shards(
    config: CorpusConfig, kept: Selection, tokenizer: DocumentTokenizer
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


def write_shard(task: ShardTask) -> tuple[Shard, Counts]:
    """Tokenise documents into one shard; return it and the number of occurrences of each token, (V,)."""
    use_one_thread()
    tokenizer = corpus_tokenizer(task.corpus_dir / "tokenizer", task.tokenizer_sha256)
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    text_bytes = iter(task.documents["text_bytes"].tolist())
    writer = ShardWriter(
        task.corpus_dir,
        task.language,
        task.split,
        task.number,
        vocab_size=len(counts),
        tokens_per_block=task.tokens_per_block,
    )
    with writer:
        for batch in read_batches(task.spools, task.documents):
            encoded = tokenizer.encode_lines([text for _, text in batch])
            counts += np.bincount(np.concatenate([tokens for tokens, _ in encoded]), minlength=len(counts))
            for (document_id, _), (tokens, lines) in zip(batch, encoded, strict=True):
                writer.write(document_id, tokens, next(text_bytes), lines)
    assert writer.shard is not None
    return writer.shard, counts


def _values(result: tuple[Shard, Counts]) -> Values:
    shard, counts = result
    return {"shard": asdict(shard), "counts": counts}


def _result(values: Values) -> tuple[Shard, Counts]:
    return Shard(**values["shard"]), values["counts"]


_TOKENISING = Stage("tokenising", write_shard, _values, _result)
