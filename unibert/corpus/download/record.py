"""``downloads.json``: where the files of a folder came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unibert.corpus.download.partial_file import file_sha1
from unibert.corpus.download.wikimedia import LICENSE, Dump, RemoteFile
from unibert.corpus.inputs import DOWNLOADS_NAME
from unibert.errors import UserError
from unibert.files import write_json


class Record:
    """The files that were downloaded into a folder, with language, date, address, size and SHA-1."""

    def __init__(self, folder: Path) -> None:
        """Read the record of a folder, if there is one. Raises UserError if it cannot be read."""
        self._folder = folder
        self._path = folder / DOWNLOADS_NAME
        self._files: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            try:
                self._files = dict(json.loads(self._path.read_text(encoding="utf-8"))["files"])
            except (KeyError, OSError, TypeError, ValueError) as error:
                raise UserError(
                    f"{self._path}: not a record of downloads; remove it, and the files beside it are checked again"
                ) from error

    async def is_complete(self, dump: Dump, file: RemoteFile) -> bool:
        """Whether the folder has the whole file. It is read only if it has changed since its checksum was right."""
        path = self._folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        entry = self._files.get(file.name, {})
        if (entry.get("sha1"), entry.get("modified_ns")) == (file.sha1, path.stat().st_mtime_ns):
            return True
        if await file_sha1(path) != file.sha1:
            return False
        self.add(dump, file)
        return True

    def add(self, dump: Dump, file: RemoteFile) -> None:
        """Record a file whose checksum is right. Raises OSError if the disk is full."""
        self._files[file.name] = {
            "language": dump.language,
            "date": dump.date,
            "url": file.url,
            "size": file.size,
            "sha1": file.sha1,
            "modified_ns": (self._folder / file.name).stat().st_mtime_ns,
        }
        present = {name: entry for name, entry in sorted(self._files.items()) if (self._folder / name).exists()}
        write_json(self._path, {"license": LICENSE, "files": present})
