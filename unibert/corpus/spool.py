"""Cleaned documents on disk between the stages of a build: compressed one by one, with an index.

A spool is a data file and an index of a few numbers per document. The index fits into memory, unlike the text, so
duplicates, the held-out split and the shards are decided on indexes alone.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard

from unibert.corpus.exclusions import title_key
from unibert.corpus.readers import Document
from unibert.files import replacing, write_atomically

_BATCH_DOCUMENTS = 256  # in memory at a time

INDEX_DTYPE = np.dtype(
    [
        ("spool", np.uint16),
        ("row", np.uint32),
        ("offset", np.uint64),
        ("size", np.uint32),
        ("text_hash", np.uint64),
        ("id_hash", np.uint64),
        ("title_hash", np.uint64),
        ("text_bytes", np.uint32),
        ("characters", np.uint32),
        ("words", np.uint32),
    ]
)
"""One entry per document: number of its spool, its own number in it, offset and size there, hashes of text, id and
title's key, sizes of the text."""

Index = npt.NDArray[np.void]


def stable_hash(text: str) -> int:
    """Return 64 bits of BLAKE2b: unlike ``hash``, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def write_spool(path: Path, documents: Iterable[Document]) -> None:
    """Write documents to ``path`` and their index to `index_path`, each of which is complete or missing."""
    compressor = zstandard.ZstdCompressor(level=1)
    entries = []
    offset = 0
    with replacing(path) as partial, partial.open("wb") as file:
        for row, document in enumerate(documents):
            text = document.text
            content = compressor.compress(f"{json.dumps(document.id)}\n{text}".encode())
            file.write(content)
            sizes = (len(text.encode()), len(text), len(text.split()))
            hashes = (stable_hash(text), stable_hash(document.id), stable_hash(title_key(document.title)))
            entries.append((0, row, offset, len(content), *hashes, *sizes))
            offset += len(content)
    buffer = io.BytesIO()
    np.save(buffer, np.array(entries, dtype=INDEX_DTYPE), allow_pickle=False)
    write_atomically(index_path(path), buffer.getvalue())


def read_index(spools: Sequence[Path]) -> Index:
    """Return the entries of all documents of the spools, (documents,) of ``INDEX_DTYPE``, in order."""
    indexes = [np.load(index_path(path), allow_pickle=False) for path in spools]
    for number, index in enumerate(indexes):
        index["spool"] = number
    return np.concatenate(indexes)


def difference(index: Index, others: Index) -> Index:
    """Return the entries of an index that are not among others of the same spools."""
    places, other_places = (
        entries["spool"].astype(np.uint64) << np.uint64(32) | entries["row"] for entries in (index, others)
    )
    return index[~np.isin(places, other_places)]


def read_documents(spools: Sequence[Path], index: Index) -> list[tuple[str, str]]:
    """Return (id, text) of the documents of the entries, in their order; files are read front to back."""
    decompressor = zstandard.ZstdDecompressor()
    documents = [("", "")] * len(index)
    order = np.lexsort((index["offset"], index["spool"]))
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in spools]
        for position in order.tolist():
            entry = index[position]
            file = files[entry["spool"]]
            file.seek(int(entry["offset"]))
            document_id, _, text = decompressor.decompress(file.read(int(entry["size"]))).decode().partition("\n")
            documents[position] = (json.loads(document_id), text)
    return documents


def read_batches(spools: Sequence[Path], index: Index) -> Iterator[list[tuple[str, str]]]:
    """Yield (id, text) of the documents of the entries, in their order, as many at a time as are in memory."""
    for first in range(0, len(index), _BATCH_DOCUMENTS):
        yield read_documents(spools, index[first : first + _BATCH_DOCUMENTS])


def identities(index: Index) -> npt.NDArray[np.uint64]:
    """Return what tells documents from others wherever they lie: the hashes of text and id, (documents, 2)."""
    return np.stack([index["text_hash"], index["id_hash"]], axis=1)


def index_path(path: Path) -> Path:
    """Return the path of a spool's index."""
    return path.with_suffix(".npy")
