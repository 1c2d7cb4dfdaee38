"""Opening of text files that may be compressed, as their names say."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": zstandard.open,
}

COMPRESSIONS = tuple(_OPENERS)
"""Endings of compressed files that are recognised."""

UNREADABLE = (OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""Exceptions that reading raises if the compressed bytes are damaged."""


def open_text(path: Path) -> io.TextIOWrapper:
    """Open a UTF-8 file, decompressing by its ending; only "\\n" ends a line.

    Reading raises EOFError if a compressed file was cut off, one of ``UNREADABLE`` if it is damaged, and
    UnicodeDecodeError if it is not UTF-8.
    """
    file = _OPENERS[path.suffix](path) if path.suffix in _OPENERS else path.open("rb")
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
