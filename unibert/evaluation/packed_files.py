"""Text files of evaluation sets, packed or not."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

_OPENERS: dict[str, Callable[..., TextIO]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
READ_ERRORS = (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError)
"""What reading from `open_text` can raise."""


def open_text(path: Path) -> TextIO:
    r"""Open a UTF-8 file for reading, unpacked if its name ends in ``.xz``, ``.gz`` or ``.bz2``.

    Lines end with ``\n`` only, since texts hold other line separators. Raises one of `READ_ERRORS`, later too.
    """
    return _OPENERS.get(path.suffix, open)(path, mode="rt", encoding="utf-8-sig", newline="\n")


def unpacked_name(path: Path) -> str:
    """Return the file's name without the ending of its compression."""
    return path.name.removesuffix(path.suffix) if path.suffix in _OPENERS else path.name
