"""Opening of text files that may be compressed, as their names say."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}

COMPRESSIONS = tuple(_DECOMPRESSORS)
"""Endings of compressed files that are recognised."""

UNREADABLE = (OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""Exceptions that reading raises if the compressed bytes are damaged."""

_READ_BYTES = 1 << 10  # of the file at a time; zstd has no limit of what it makes of them, 32 MiB at worst
_OUTPUT_BYTES = 1 << 16


def open_text(path: Path, spans: Sequence[tuple[int, int]] | None = None) -> io.TextIOWrapper:
    """Open a UTF-8 file, decompressing by its ending; only "\\n" ends a line.

    With ``spans``, only those bytes of the file are read, from the first number of each to before the second.

    Reading raises EOFError if a compressed file was cut off, one of ``UNREADABLE`` if it is damaged, and
    UnicodeDecodeError if it is not UTF-8. Compressed streams may follow one another; zero bytes may follow the last
    one, and nothing else may.
    """
    file: Any = path.open("rb") if spans is None else io.BufferedReader(_Spans(path.open("rb"), spans))
    if path.suffix in _DECOMPRESSORS:
        file = io.BufferedReader(_Decompressed(file, _DECOMPRESSORS[path.suffix]), 1 << 16)
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")


class _Reading(io.RawIOBase):
    """What is read from a file, which closes with it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


class _Spans(_Reading):
    """Some spans of a file, joined."""

    def __init__(self, file: BinaryIO, spans: Sequence[tuple[int, int]]) -> None:
        super().__init__(file)
        self._spans = list(spans)

    def readinto(self, buffer: Any) -> int:
        while self._spans:
            start, end = self._spans.pop(0)
            self._file.seek(start)
            if content := self._file.read(min(len(buffer), end - start)):
                self._spans.insert(0, (start + len(content), end))
                buffer[: len(content)] = content
                return len(content)
        return 0


class _Decompressed(_Reading):
    """The bytes of compressed streams, one after the other.

    The modules' own files are no use here: those of bz2 and lzma end without a word at bytes that are no stream, that
    of zstandard also where the file was cut off.
    """

    def __init__(self, file: BinaryIO, new_decompressor: Callable[[], Any]) -> None:
        super().__init__(file)
        self._new_decompressor = new_decompressor
        self._decompressor = new_decompressor()
        self._output = memoryview(b"")
        self._is_padding = False

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            has_more = not getattr(self._decompressor, "needs_input", True) and not self._decompressor.eof
            content = b"" if has_more else self._next_bytes()
            if not content and not has_more:
                return 0
            self._output = memoryview(self._decompress(content))
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def _next_bytes(self) -> bytes:
        content = (self._decompressor.unused_data if self._decompressor.eof else b"") or self._file.read(_READ_BYTES)
        if not content and not self._decompressor.eof and not self._is_padding:
            raise EOFError("the file ends within a compressed stream")
        return content

    def _decompress(self, content: bytes) -> bytes:
        if self._decompressor.eof:
            self._decompressor, self._is_padding = self._new_decompressor(), not content.strip(b"\0")
        if self._is_padding:
            if content.strip(b"\0"):
                raise OSError("zero bytes between compressed streams")
            return b""
        if isinstance(self._decompressor, bz2.BZ2Decompressor | lzma.LZMADecompressor):
            return self._decompressor.decompress(content, _OUTPUT_BYTES)
        return self._decompressor.decompress(content)
