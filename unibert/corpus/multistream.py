"""Multistream dumps: bz2 streams of 100 pages each, after one with the siteinfo, so that reading can start anywhere.

Their index is not needed: a stream's beginning is found in the compressed bytes, and is taken only if a page begins
there.
"""

from __future__ import annotations

import bz2
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_BEGINNING = re.compile(rb"BZh[1-9]1AY&SY")  # of a stream and its first block
_BEGINNING_BYTES = 10
_READ_BYTES = 1 << 20
_HEADER_BYTES = 1 << 20  # at most; of other dumps no more is searched


@dataclass(frozen=True)
class StreamRange:
    """The share of a multistream dump that one part reads, in bytes of the file."""

    header: int
    """End of the first stream, with the siteinfo."""
    start: int
    end: int
    is_last: bool
    """Whether it holds the end of the file."""


def is_multistream(path: Path) -> bool:
    """Whether the file is a multistream dump."""
    return path.suffix == ".bz2" and _header_end(path) is not None


def stream_range(path: Path, part: int, parts: int) -> StreamRange | None:
    """Return the range that one of ``parts`` reads, None if the file is no multistream dump.

    Ranges are about equally large, end where the next begins, and begin with a page.
    """
    header = _header_end(path) if path.suffix == ".bz2" else None
    if header is None:
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        bounds = [
            header if number == 0 else size if number == parts else _next_page(file, size * number // parts)
            for number in (part, part + 1)
        ]
    start, end = (max(header, bound) for bound in bounds)
    return StreamRange(header, start, end, is_last=start < end == size)


def _header_end(path: Path) -> int | None:
    with path.open("rb") as file:
        beginning = file.read(_HEADER_BYTES)
        match = _BEGINNING.search(beginning, _BEGINNING_BYTES)
        if match is None or not _begins_page(file, match.start()):
            return None
    try:
        header = bz2.decompress(beginning[: match.start()])
    except (OSError, ValueError):
        return None
    return match.start() if b"<mediawiki" in header and b"<page" not in header else None


def _next_page(file: BinaryIO, position: int) -> int:
    """Return where the first stream at or after a position begins with a page, the file's size if there is none."""
    kept = b""
    while True:
        file.seek(position + len(kept))
        if not (content := file.read(_READ_BYTES)):
            return position + len(kept)
        content = kept + content
        for match in _BEGINNING.finditer(content):
            if _begins_page(file, position + match.start()):
                return position + match.start()
        kept = content[1 - _BEGINNING_BYTES :]
        position += len(content) - len(kept)


def _begins_page(file: BinaryIO, offset: int) -> bool:
    file.seek(offset)
    decompressor = bz2.BZ2Decompressor()
    text = b""
    try:
        while len(text) < 64 and not decompressor.eof and (content := file.read(1 << 16)):
            text += decompressor.decompress(content, 64)
    except OSError:
        return False
    return text.lstrip().startswith(b"<page>")
