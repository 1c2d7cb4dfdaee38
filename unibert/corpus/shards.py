"""The shard format: tar files of blocks of tokenised documents, readable by WebDataset.

A tar sample is a block of documents, so that the tar overhead (1.5 kB and more per sample) is paid once for many:

    <key>.tokens.npy   1-D uint16 (vocabulary up to 65,536) or uint32: the documents' tokens end to end, no specials
    <key>.lengths.npy  1-D uint32: tokens of each document
    <key>.json         {"ids": [document ids], "crc32": of the tokens' and then the lengths' bytes}

Where the line breaks of the text are known, a block also has the next member, which training does not decode, and
"lines": [number of lines of each document] and "lines_crc32": of that array's bytes, in its JSON:

    <key>.lines.npy    1-D uint32: tokens of each line of each document, in order

Train shards of a corpus that a teacher has read (`unibert corpus teach`) also have

    <key>.vectors.npy  2-D float16: the teacher's mean vector of each piece of each document, in order
    <key>.vectors.json {"crc32": of the vectors' bytes}

The key is the block's number within the shard, six digits. Shards hold arrays and JSON, never pickles, and equal
documents give equal bytes: times, owners and modes in the tar are constants.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from unibert.corpus.manifest import Shard, Split
from unibert.files import file_sha256

_MEMBERS = ("tokens.npy", "lengths.npy", "json")
_VECTOR_MEMBERS = ("vectors.npy", "vectors.json")
_DOCUMENTS_PER_BLOCK = 256


@dataclass(frozen=True)
class Block:
    """The documents of one tar sample."""

    ids: list[str]
    lengths: npt.NDArray[np.uint32]
    """Tokens of each document, (D,)."""
    tokens: npt.NDArray[np.unsignedinteger]
    """All documents' tokens end to end, (sum of lengths,), uint16 or uint32."""
    vectors: npt.NDArray[np.float16] | None = None
    """A teacher's vectors, (N, H); None if there are none, or they were not asked for."""
    lines: list[npt.NDArray[np.uint32]] | None = None
    """Tokens of each line of each document; None if they are not known, or were not asked for."""

    def documents(self) -> list[npt.NDArray[np.unsignedinteger]]:
        """Return one view of ``tokens`` per document."""
        return np.split(self.tokens, np.cumsum(self.lengths, dtype=np.int64)[:-1])


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """Return the narrower of the two token types that holds every id of the vocabulary."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def encode_block(block: Block) -> dict[str, bytes]:
    """Return the block's tar members by extension."""
    metadata: dict[str, Any] = {"ids": block.ids, "crc32": _checksum(block.tokens, block.lengths)}
    members = {"tokens.npy": _npy_bytes(block.tokens), "lengths.npy": _npy_bytes(block.lengths)}
    if block.lines is not None:
        lines = np.concatenate(block.lines)
        metadata |= {"lines": [len(document) for document in block.lines], "lines_crc32": _checksum(lines)}
        members["lines.npy"] = _npy_bytes(lines)
    return members | {"json": json.dumps(metadata, ensure_ascii=False).encode()}


def encode_vectors(vectors: npt.NDArray[np.float16]) -> dict[str, bytes]:
    """Return the tar members by extension that a block has besides its own if a teacher has read it."""
    return {"vectors.npy": _npy_bytes(vectors), "vectors.json": json.dumps({"crc32": _checksum(vectors)}).encode()}


def pieces_of(lengths: npt.NDArray[Any], max_length: int) -> npt.NDArray[np.int64]:
    """Return the number of pieces of at most ``max_length`` tokens into which documents are cut, (D,)."""
    return -(-lengths.astype(np.int64) // max_length)


def decode_block(sample: Mapping[str, Any], piece_length: int | None = None, *, with_lines: bool = False) -> Block:
    """Read a WebDataset sample (extension → bytes; ``__key__`` and the like are ignored).

    Args:
        sample: members of the block.
        piece_length: tokens of a piece, to read the vectors of pieces too.
        with_lines: read the lines of documents too, if the block has them.

    Raises:
        ValueError: if a member is missing, unreadable, or does not fit the others.
    """
    wanted = _MEMBERS if piece_length is None else (*_MEMBERS, *_VECTOR_MEMBERS)
    if missing := [member for member in wanted if member not in sample]:
        raise ValueError(f"block {sample.get('__key__', '?')}: no {', '.join(missing)}")
    vectors = lines = None
    try:
        arrays = {
            name: np.load(io.BytesIO(sample[name]), allow_pickle=False) for name in wanted if name.endswith(".npy")
        }
        tokens, lengths = arrays["tokens.npy"], arrays["lengths.npy"]
        metadata = json.loads(sample["json"])
        ids, checksum = metadata["ids"], metadata["crc32"]
        if piece_length is not None:
            vectors, vectors_checksum = arrays["vectors.npy"], json.loads(sample["vectors.json"])["crc32"]
        if with_lines and "lines" in metadata:
            lines = np.load(io.BytesIO(sample["lines.npy"]), allow_pickle=False)
            line_counts, lines_checksum = np.array(metadata["lines"], np.int64), metadata["lines_crc32"]
    except (EOFError, KeyError, OSError, OverflowError, SyntaxError, TokenError, TypeError, ValueError) as error:
        raise ValueError(f"block {sample.get('__key__', '?')}: unreadable ({error})") from error
    consistent = (
        tokens.ndim == lengths.ndim == 1
        and tokens.dtype in (np.uint16, np.uint32)
        and lengths.dtype == np.uint32
        and isinstance(ids, list)
        and 0 < len(ids) == len(lengths)
        and int(lengths.sum(dtype=np.int64)) == len(tokens)
        and _checksum(tokens, lengths) == checksum
    )
    if consistent and vectors is not None:
        assert piece_length is not None
        consistent = (
            vectors.ndim == 2
            and vectors.dtype == np.float16
            and len(vectors) == pieces_of(lengths, piece_length).sum()
            and _checksum(vectors) == vectors_checksum
        )
    if consistent and lines is not None:
        consistent = (
            lines.ndim == line_counts.ndim == 1
            and lines.dtype == np.uint32
            and len(line_counts) == len(ids)
            and line_counts.min() > 0
            and line_counts.sum() == len(lines)
            and bool((np.add.reduceat(lines, np.cumsum(line_counts) - line_counts, dtype=np.int64) == lengths).all())
            and _checksum(lines) == lines_checksum
        )
    if not consistent:
        raise ValueError(f"block {sample.get('__key__', '?')}: ids, arrays and checksum do not fit together")
    return Block(ids, lengths, tokens, vectors, None if lines is None else np.split(lines, np.cumsum(line_counts)[:-1]))


def _checksum(*arrays: npt.NDArray[Any]) -> int:
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(array.tobytes(), checksum)
    return checksum


def _npy_bytes(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a member with constant times, owner and mode."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def shard_path(language: str, split: Split, number: int) -> str:
    """Return the path of a shard in its corpus."""
    return f"{language}/{split}-{number:06d}.tar"


class ShardWriter:
    """Context manager that writes one shard, ``<language>/<split>-<number>.tar`` with a number of six digits.

    A block holds at most 256 documents and at most ``tokens_per_block`` tokens, unless one document alone is longer.
    The file has the suffix ``.partial`` until it is complete.

    Attributes:
        shard: the complete shard; None before, and if no document was written.
    """

    def __init__(
        self,
        corpus_dir: str | os.PathLike[str],
        language: str,
        split: Split,
        number: int = 0,
        *,
        vocab_size: int,
        tokens_per_block: int = 1 << 16,
    ) -> None:
        self.shard: Shard | None = None
        self._dir = Path(corpus_dir)
        self._language, self._split = language, split
        self._path = self._dir / shard_path(language, split, number)
        self._partial = self._path.with_suffix(".tar.partial")
        self._dtype = token_dtype(vocab_size)
        self._tokens_per_block = tokens_per_block
        self._tar: tarfile.TarFile | None = None
        self._ids: list[str] = []
        self._documents: list[npt.NDArray[Any]] = []
        self._lines: list[npt.NDArray[np.uint32] | None] = []
        self._block_tokens = self._block_text_bytes = 0
        self._totals = dict.fromkeys(("documents", "blocks", "tokens", "text_bytes"), 0)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        if exception_type is None:
            self.close()
        elif self._tar is not None:
            self._tar.close()
            self._partial.unlink(missing_ok=True)

    def write(
        self,
        document_id: str,
        tokens: Sequence[int] | npt.NDArray[Any],
        text_bytes: int,
        lines: npt.NDArray[np.uint32] | None = None,
    ) -> None:
        """Append a document: its token ids without special tokens, the bytes of the text they stand for, and the tokens
        of each of its lines, which a block has if all its documents do.

        Raises:
            ValueError: if the document has no tokens, an id does not fit the vocabulary's dtype, or the lines do not
                have all tokens.
        """
        array = np.asarray(tokens)
        if not array.size or array.min() < 0 or array.max() > np.iinfo(self._dtype).max:
            raise ValueError(f"document {document_id}: no tokens, or ids outside {self._dtype.__name__}")
        if lines is not None and lines.sum(dtype=np.int64) != array.size:
            raise ValueError(f"document {document_id}: lines of {lines.sum()} tokens, but {array.size} tokens")
        if self._ids and self._block_tokens + array.size > self._tokens_per_block:
            self._flush_block()
        self._ids.append(document_id)
        self._documents.append(array.astype(self._dtype))
        self._lines.append(lines)
        self._block_tokens += array.size
        self._block_text_bytes += text_bytes
        if len(self._ids) >= _DOCUMENTS_PER_BLOCK or self._block_tokens >= self._tokens_per_block:
            self._flush_block()

    def close(self) -> None:
        """Write the last block and complete the shard."""
        if self._ids:
            self._flush_block()
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        self._partial.replace(self._path)
        self.shard = Shard(
            path=self._path.relative_to(self._dir).as_posix(),
            language=self._language,
            split=self._split,
            size_bytes=self._path.stat().st_size,
            sha256=file_sha256(self._path),
            **self._totals,
        )

    def _flush_block(self) -> None:
        tar = self._tar or self._open_shard()
        lengths = np.array([len(tokens) for tokens in self._documents], dtype=np.uint32)
        lines = [document for document in self._lines if document is not None]
        block = Block(
            self._ids,
            lengths,
            np.concatenate(self._documents),
            lines=lines if len(lines) == len(self._ids) else None,
        )
        members = encode_block(block)
        for extension, content in members.items():
            add_member(tar, f"{self._totals['blocks']:06d}.{extension}", content)
        self._totals["documents"] += len(self._ids)
        self._totals["tokens"] += self._block_tokens
        self._totals["text_bytes"] += self._block_text_bytes
        self._totals["blocks"] += 1
        self._ids, self._documents, self._lines = [], [], []
        self._block_tokens = self._block_text_bytes = 0

    def _open_shard(self) -> tarfile.TarFile:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._tar = tarfile.open(self._partial, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed with the shard)
        return self._tar
