"""Where the text of a corpus comes from: its input files, with what their names and ``downloads.json`` say of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unibert.corpus.inputs import DOWNLOADS_NAME, InputFile
from unibert.files import write_json

_DUMP = re.compile(r"[a-z_]+wiki-(\d{8}|latest)-pages-")
_DATED_FOLDER = re.compile(r"(\d{8})\.[a-z_-]+")
_VERSION_4_SINCE = "20230607"
"""Date from which on Wikimedia's text is under CC BY-SA 4.0; before, it was under 3.0."""


@dataclass(frozen=True)
class Source:
    """One input file."""

    path: Path
    language: str
    size: int
    """In bytes."""
    date: str
    """Of the dump, as in 20261101; empty if it is not known."""
    sha1: str
    """Wikimedia's checksum, if `corpus download` has fetched the file, else empty."""
    is_dump: bool
    """Whether it is a dump of Wikimedia."""

    @property
    def licenses(self) -> tuple[str, ...]:
        """Licences of the text as the Hugging Face hub names them; none if they are not known."""
        if not self.is_dump:
            return ()
        return ("cc-by-sa-3.0" if self.date and self.date < _VERSION_4_SINCE else "cc-by-sa-4.0", "gfdl")


def sources_of(files: Iterable[InputFile]) -> list[Source]:
    """Return the sources of a corpus, in the order of the files."""
    sources = []
    for file in files:
        recorded = _entry(file) or {}
        dump = _DUMP.match(file.path.name) if file.kind == "wiki" else None
        folder = _DATED_FOLDER.fullmatch(file.path.absolute().parent.name) if file.kind == "parquet" else None
        dated = dump or folder
        sources.append(
            Source(
                path=file.path,
                language=file.language,
                size=file.path.stat().st_size,
                date=str(recorded.get("date") or ("" if dated is None or dated[1] == "latest" else dated[1])),
                sha1=str(recorded.get("sha1", "")),
                is_dump=bool(recorded or dump),
            )
        )
    return sources


def save_downloads(corpus_dir: Path, files: Iterable[InputFile]) -> None:
    """Write a ``downloads.json`` with the entries of the files, if `corpus download` has fetched some of them."""
    entries = {file: entry for file in files if (entry := _entry(file))}
    if entries:
        license = next(_record(file.path.parent)["license"] for file in entries)
        described = {
            file.path.name: {key: value for key, value in entry.items() if key != "modified_ns"}
            for file, entry in sorted(entries.items(), key=lambda item: item[0].path.name)
        }
        write_json(corpus_dir / DOWNLOADS_NAME, {"license": license, "files": described})


def _entry(file: InputFile) -> dict[str, Any] | None:
    """Return what is recorded of a file, unless another file has taken its place."""
    entry = _record(file.path.parent)["files"].get(file.path.name)
    return entry if isinstance(entry, dict) and entry.get("size") == file.path.stat().st_size else None


def _record(folder: Path) -> dict[str, Any]:
    """Return the record of a folder, an empty one if there is none that can be read."""
    try:
        content = json.loads((folder / DOWNLOADS_NAME).read_text(encoding="utf-8"))
        return {"license": str(content["license"]), "files": dict(content["files"])}
    except (KeyError, OSError, TypeError, ValueError):
        return {"license": "", "files": {}}
