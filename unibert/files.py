"""Files: written whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_CHUNK = 1 << 24
"""Most bytes at once. After each this thread asks for Python's lock again, which one that trains gives up only every
few milliseconds."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new path in the folder of ``path``, for a file that takes the place of ``path`` once the block has ended.

    Readers meet the old file or the new one, whole. If the block raises, the old file stays and the new one goes.
    Several processes may write at once: the last to end wins.

    Raises:
        OSError: where the folder cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file as :func:`replacing` does; text as UTF-8. Raises OSError where it cannot be written."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically. Raises OSError where it cannot be written."""
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, hexadecimal. Raises OSError where it cannot be read."""
    content = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as file:
        chunk = memoryview(bytearray(min(_CHUNK, os.fstat(file.fileno()).st_size + 1)))
        while size := file.readinto(chunk):
            content.update(chunk[:size])
    return content.hexdigest()
