"""Cleaned documents on disk between the stages of a build: compressed one by one, found again by number.

A spool is a data file and an index of a few numbers per document. The index is small enough for memory where the text
is not, so duplicates, the held-out split and the shards are decided on indexes alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unibert.corpus.readers import Document

INDEX_DTYPE = np.dtype(
    [
        ("offset", np.uint64),
        ("size", np.uint32),
        ("text_hash", np.uint64),
        ("id_hash", np.uint64),
        ("text_bytes", np.uint32),
        ("characters", np.uint32),
        ("words", np.uint32),
        ("lines", np.uint32),
    ]
)
"""One entry per document: place and size in the data file, hashes of text and id, and sizes of the text."""

Index = npt.NDArray[np.void]


def stable_hash(text: str) -> int:
    """64 bits of BLAKE2b: the same in every process and on every machine, unlike ``hash``."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def write_spool(path: Path, documents: Iterable[Document]) -> None:
    """Write documents to ``path`` and their index beside it (``.npy``)."""
    entries = []
    offset = 0
    with path.open("wb") as file:
        for document in documents:
            text = document.text
            content = zlib.compress(json.dumps([document.id, text], ensure_ascii=False).encode(), level=1)
            file.write(content)
            sizes = (len(text.encode()), len(text), len(text.split()), text.count("\n") + 1)
            entries.append((offset, len(content), stable_hash(text), stable_hash(document.id), *sizes))
            offset += len(content)
    np.save(_index_path(path), np.array(entries, dtype=INDEX_DTYPE), allow_pickle=False)


def read_index(path: Path) -> Index:
    """The index of a spool: (documents,) of ``INDEX_DTYPE``."""
    return np.load(_index_path(path), allow_pickle=False)


def read_spool(path: Path, entries: Index) -> Iterator[tuple[str, str]]:
    """(id, text) of the documents that the index entries stand for, in their order."""
    with path.open("rb") as file:
        for offset, size in zip(entries["offset"].tolist(), entries["size"].tolist(), strict=True):
            document_id, text = json.loads(zlib.decompress(os.pread(file.fileno(), size, offset)))
            yield document_id, text


def _index_path(path: Path) -> Path:
    return path.with_suffix(".npy")
