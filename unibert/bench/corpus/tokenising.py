"""Tokenising and sharding by UniBERT beside the tokenizers alone, on the same documents.

`prepare_documents` writes the cleaned documents as a build does, and trains a SentencePiece model on them. UniBERT
reads them from there and writes shards. The tokenizers alone turn the same documents, which are in memory, into ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unibert.bench.corpus.measure import measure_call
from unibert.corpus.config import CorpusConfig
from unibert.corpus.inputs import InputFile
from unibert.corpus.pretrained_tokenizer import PretrainedTokenizer
from unibert.corpus.preview import preview_documents
from unibert.corpus.readers import Document
from unibert.corpus.spool import read_documents, read_index, write_spool
from unibert.corpus.text_tokenizer import TOKENIZER_NAME, use_one_thread
from unibert.corpus.tokenising import ShardTask, write_shard
from unibert.corpus.tokenizer import load_tokenizer, train_tokenizer

TOKENIZER, PRETRAINED = "tokenizer", "pretrained"
"""Names of the tokenizers, and of their folders."""
_SPOOLS = "spools"
_TRAINING_LINES = 200_000

Row = dict[str, Any]


@dataclass(frozen=True)
class Encoder:
    """One way to tokenise; ``run`` gets the work's folder and an empty one, and returns figures of `measure_call`."""

    name: str
    side: Literal["ours", "peer"]
    tokenizer: str
    """`TOKENIZER` or `PRETRAINED`."""
    run: Callable[[Path, Path], Row]


def prepare_documents(files: Sequence[InputFile], folder: Path, vocab_size: int, pretrained: str | None) -> Row:
    """Write documents and tokenizers.

    Returns:
        "documents", "text_bytes", "lines".

    Raises:
        UserError: if a file cannot be read, the text does not allow the vocabulary, or there is no such tokenizer.
    """
    from unibert.corpus.fast_tokenizer import save_tokenizer  # imports transformers

    (folder / _SPOOLS).mkdir()
    for number, file in enumerate(files):
        write_spool(_spool(folder, number, file.language), _clean_documents(file))
    indexes = [read_index([spool]) for spool in _spools(folder)]
    documents = sum(map(len, indexes))
    text_bytes = sum(int(index["text_bytes"].sum(dtype=np.int64)) for index in indexes)
    lines = sum(1 for _ in _lines(folder))
    sample = islice(_lines(folder), 0, None, -(-lines // _TRAINING_LINES) or 1)
    save_tokenizer(train_tokenizer(sample, vocab_size=vocab_size), folder / TOKENIZER, model_max_length=512)
    if pretrained is not None:
        PretrainedTokenizer.load(pretrained, "pretrained").save(folder / PRETRAINED, model_max_length=512)
    return {"documents": documents, "text_bytes": text_bytes, "lines": lines}


def _clean_documents(file: InputFile) -> Iterator[Document]:
    config = CorpusConfig(inputs=[str(file.path)], output="")
    for page in preview_documents([file], config.filters, config.max_page_characters, lambda *_: True):
        if not page.dropped:
            yield replace(page.document, text=page.text)


def _spool(folder: Path, number: int, language: str) -> Path:
    return folder / _SPOOLS / f"{number:06d}.{language}.spool"


def _spools(folder: Path) -> list[Path]:
    """Return the spools that have documents, in the order of the files."""
    return [path for path in sorted((folder / _SPOOLS).glob("*.spool")) if path.stat().st_size]


def _lines(folder: Path) -> Iterator[str]:
    for text in _texts(folder):
        yield from text.split("\n")


def _texts(folder: Path) -> Iterator[str]:
    for spool in _spools(folder):
        for _, text in read_documents([spool], read_index([spool])):
            yield text


def _unibert(folder: Path, output: Path, tokenizer: str) -> Row:
    (output / "tokenizer").symlink_to((folder / tokenizer).absolute())
    tasks = [
        ShardTask(
            language=spool.name.split(".")[1],
            split="train",
            number=number,
            spools=[spool],
            documents=read_index([spool]),
            corpus_dir=output,
            tokenizer_sha256=tokenizer,
            tokens_per_block=CorpusConfig(inputs=[str(spool)], output="").tokens_per_block,
        )
        for number, spool in enumerate(_spools(folder))
    ]
    write_shard(replace(tasks[0], documents=tasks[0].documents[:1]))  # loads the tokenizer

    def write_shards() -> None:
        for task in tasks:
            write_shard(task)

    return measure_call(write_shards)


def _sentencepiece(folder: Path, return_type: Any) -> Row:
    processor, texts = load_tokenizer(folder / TOKENIZER), list(_texts(folder))
    processor.Encode(texts[:1], return_type=return_type, num_threads=1)
    return measure_call(lambda: processor.Encode(texts, return_type=return_type, num_threads=1))


def _tokenizers(folder: Path, method: str) -> Row:
    from tokenizers import Tokenizer

    use_one_thread()
    tokenizer, texts = Tokenizer.from_file(str(folder / PRETRAINED / TOKENIZER_NAME)), list(_texts(folder))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encode = getattr(tokenizer, method)
    encode(texts[:1], add_special_tokens=False)
    return measure_call(lambda: encode(texts, add_special_tokens=False))


ENCODERS = (
    Encoder("UniBERT", "ours", TOKENIZER, lambda folder, output: _unibert(folder, output, TOKENIZER)),
    Encoder("SentencePiece, lists", "peer", TOKENIZER, lambda folder, _: _sentencepiece(folder, int)),
    Encoder("SentencePiece, arrays", "peer", TOKENIZER, lambda folder, _: _sentencepiece(folder, "numpy")),
    Encoder("UniBERT", "ours", PRETRAINED, lambda folder, output: _unibert(folder, output, PRETRAINED)),
    Encoder("tokenizers, encode_batch", "peer", PRETRAINED, lambda folder, _: _tokenizers(folder, "encode_batch")),
    Encoder(
        "tokenizers, encode_batch_fast", "peer", PRETRAINED, lambda folder, _: _tokenizers(folder, "encode_batch_fast")
    ),
)
"""All that are measured. ``encode_batch_fast`` has no offsets, which UniBERT needs to find the lines of documents."""
