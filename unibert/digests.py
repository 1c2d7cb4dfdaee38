"""Digests of files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_CHUNK = 1 << 24
"""Most bytes at once. After each this thread asks for Python's lock again, which one that trains gives up only every
few milliseconds."""


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, hexadecimal. Raises OSError where it cannot be read."""
    content = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as file:
        chunk = memoryview(bytearray(min(_CHUNK, os.fstat(file.fileno()).st_size + 1)))
        while size := file.readinto(chunk):
            content.update(chunk[:size])
    return content.hexdigest()
