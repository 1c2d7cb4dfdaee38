"""A file that is being downloaded: ``NAME.part``, which becomes ``NAME`` when it is complete and its SHA-1 is right."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from unibert.corpus.download.wikimedia import RemoteFile
from unibert.files import write_json

_CHUNK = 1 << 22


class PartialFile:
    """The bytes of a remote file that are there; used as a context manager.

    ``NAME.part.json`` beside it has the SHA-1 of the whole and the validator (RFC 9110, section 8.8) of the answer that
    the bytes are from. Bytes without them are of use only if they are all there: they cannot be continued safely.

    Writing raises OSError if the disk is full; what was written stays.
    """

    def __init__(self, path: Path, remote: RemoteFile, on_change: Callable[[int], None]) -> None:
        """Open or create the file beside ``path``; ``on_change`` is told the number of bytes by which it grows."""
        self.remote = remote
        self.size = 0
        """Number of bytes that are there."""
        self._path = path
        self._on_change = on_change
        self._part, self._origin = part_paths(path)
        self._validator: str | None = None
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        # Unbuffered, so that all bytes that were received survive if this process is killed.
        self._file = self._part.open("a+b", buffering=0)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    async def read_existing(self) -> None:
        """Take over the bytes of an earlier download."""
        self._validator = self._saved_validator()
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK):
            self._add(chunk)
            await asyncio.sleep(0)  # other downloads go on

    def range_headers(self) -> dict[str, str]:
        """Headers of a request for the bytes that are missing, if the file is still the same."""
        if not self.size or self._validator is None:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self._validator}

    def begin(self, validator: str | None) -> None:
        """Discard what is there; the bytes that follow are from an answer with this validator."""
        self.discard()
        self._validator = validator
        if validator is not None:
            write_json(self._origin, {"sha1": self.remote.sha1, "validator": validator})

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises OSError if the disk is full."""
        rest = memoryview(chunk)
        while rest:
            written = self._file.write(rest)
            self._add(rest[:written])
            rest = rest[written:]

    def discard(self) -> None:
        """Remove all bytes."""
        self._origin.unlink(missing_ok=True)
        self._file.truncate(0)
        self._on_change(-self.size)
        self.size, self._validator = 0, None
        self._sha1 = hashlib.sha1(usedforsecurity=False)

    def has_right_digest(self) -> bool:
        """Whether the bytes have the SHA-1 of the remote file."""
        return self._sha1.hexdigest() == self.remote.sha1

    def finish(self) -> None:
        """Give the file its name."""
        os.fsync(self._file.fileno())
        self._part.replace(self._path)
        self._origin.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the file."""
        self._origin.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)

    def _saved_validator(self) -> str | None:
        try:
            origin = json.loads(self._origin.read_text(encoding="utf-8"))
            return str(origin["validator"]) if origin["sha1"] == self.remote.sha1 else None
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            return None

    def _add(self, chunk: bytes | memoryview) -> None:
        self._sha1.update(chunk)
        self.size += len(chunk)
        self._on_change(len(chunk))


def part_paths(path: Path) -> tuple[Path, Path]:
    """Return the files that hold what there is of ``path``: its bytes, and their origin."""
    return path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")


async def file_sha1(path: Path) -> str:
    """Return the SHA-1 of a file, hexadecimal, without holding up other downloads. Raises OSError."""
    digest = hashlib.sha1(usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            await asyncio.sleep(0)
    return digest.hexdigest()
