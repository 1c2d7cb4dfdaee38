"""Atomic writing of files, their digests, and locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unibert.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a disk that takes no more, or no larger file."""
_CHUNK = 1 << 24
"""Bytes per read. After each read, this thread needs Python's lock again, which a training thread releases only every
few milliseconds."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new path in the folder of ``path``, for a file that replaces ``path`` when the block ends.

    Readers see either the old file or the new one, complete. If the block raises, the old file stays and the new one is
    removed. Several processes may write at once: the last to finish wins.

    Raises:
        OSError: if the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file as :func:`replacing` does; text as UTF-8. Raises OSError if it cannot be written."""
    with replacing(path) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically. Raises OSError if it cannot be written."""
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def flush_to_disk(path: Path) -> None:
    """Make a file's content, or a folder's entries, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Lock a file, which is created if it is missing, or a folder while the block runs.

    The lock ends with its process. Some network file systems cannot lock; there the block runs without.

    Raises:
        UserError: with ``busy`` as its sentence, if another process has locked it.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content, hexadecimal. Raises OSError if it cannot be read."""
    content = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as file:
        chunk = memoryview(bytearray(min(_CHUNK, os.fstat(file.fileno()).st_size + 1)))
        while size := file.readinto(chunk):
            content.update(chunk[:size])
    return content.hexdigest()
