"""The input files of a build: which files of the given paths are read, in which language, and which are left out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unibert.corpus.compression import COMPRESSIONS
from unibert.corpus.parquet import parquet_language
from unibert.errors import UserError
from unibert.languages import LANGUAGES, language_code
from unibert.text import shortened

Kind = Literal["wiki", "jsonl", "text", "parquet"]

# Parts of a large Wikipedia are named enwiki-20230501-pages-articles1.xml-p1p41242.bz2
_KINDS: dict[str, Kind] = {
    r"\.xml(-p\d+p\d+)?": "wiki",
    r"\.jsonl": "jsonl",
    r"\.txt": "text",
    r"\.parquet": "parquet",
}
_COMPRESSION = "(" + "|".join(re.escape(ending) for ending in COMPRESSIONS) + ")?"
_INDEX = re.compile(rf"-index\d*\.txt(-p\d+p\d+)?{_COMPRESSION}$")
_WIKI = re.compile(r"([a-z]{2,3}|[a-z]+(?:[_-][a-z]+)*)wiki")
_DUMP = re.compile(
    rf"(?P<dump>.+wiki-.*pages-[a-z-]+?)(?P<multistream>-multistream)?(?P<part>\d*\.xml(?:-p\d+p\d+)?){_COMPRESSION}$"
)
DOWNLOADS_NAME = "downloads.json"
"""File in which `corpus download` records what it has fetched into a folder."""
LISTED_NAMES = 3
"""Names that a sentence lists; of others it gives the number."""

_Reason = tuple[str, str, str]
"""Noun, what is true of such files, and advice."""
_NO_LANGUAGE: _Reason = ("file", " without a language code at the beginning of the name", "; give each as <code>=PATH")
_NO_DOCUMENTS: _Reason = ("file", " of other kinds than .xml, .jsonl, .txt and .parquet", "")
_INDEXES: _Reason = ("file", " with an index of a multistream dump", "")
_COPIES: _Reason = ("file", " with pages that other files hold too", "")
_SUBFOLDERS: _Reason = ("subfolder", "", "")
_LINKS: _Reason = ("broken link", "", "")


@dataclass(frozen=True)
class InputFile:
    """A file of documents in one language."""

    path: Path
    language: str
    kind: Kind


def find_inputs(inputs: Iterable[str]) -> list[InputFile]:
    """Find the files of inputs: files, folders of files, or ``en=PATH`` for names that do not give the language.

    The language is the beginning of the name, as in ``af.jsonl.xz``, ``nds-nl.txt``, or what stands before "wiki":
    ``enwiki-20230501-pages-articles.xml.bz2``, ``zh_yuewiki.xml``. Each file is returned once, in order of path. Of
    files that hold the same pages, a whole dump, its parts and their multistream versions, one is returned.

    Raises:
        UserError: if a path does not exist, a file is of unknown kind or language, or a folder has no documents.
    """
    return _search(inputs)[0]


def unread_files(inputs: Iterable[str]) -> list[str]:
    """Return a sentence for each folder that has files which `find_inputs` leaves out, with the reasons."""
    return [f"{folder}: left out {_reasons(names)}" for folder, names in _search(inputs)[1].items()]


def _search(inputs: Iterable[str]) -> tuple[list[InputFile], dict[Path, dict[_Reason, list[str]]]]:
    """Return the files to read, and the names of those left out by folder and reason."""
    found: set[InputFile] = set()
    left_out: dict[Path, dict[_Reason, list[str]]] = {}
    for given in inputs:
        code, has_code, name = given.partition("=")
        explicit = has_code and not Path(given).exists()
        path, forced = (Path(name), language_code(code)) if explicit else (Path(given), "")
        if path.is_dir():
            files, names = _sort_folder(path, forced)
            if not files:
                there = f"; it has {_reasons(names)}" if names else ""
                raise UserError(
                    f"{path}: no file of documents in this folder, such as enwiki.xml.bz2 or en.jsonl.xz{there}"
                )
            found.update(files)
            if names:
                left_out[path] = names
        elif path.is_file():
            found.add(_input_file(path, forced))
        else:
            raise UserError(f"{path}: no such file or folder")
    copies = _copies(found)
    for file in sorted(copies, key=lambda file: file.path):
        left_out.setdefault(file.path.parent, {}).setdefault(_COPIES, []).append(file.path.name)
    return sorted(found - copies, key=lambda entry: (entry.path, entry.language)), left_out


def _sort_folder(folder: Path, forced: str) -> tuple[list[InputFile], dict[_Reason, list[str]]]:
    files: list[InputFile] = []
    left_out: dict[_Reason, list[str]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            left_out[_SUBFOLDERS].append(path.name)
        elif not path.exists():
            left_out[_LINKS].append(path.name)
        elif path.name == DOWNLOADS_NAME:
            continue
        elif _INDEX.search(path.name):
            left_out[_INDEXES].append(path.name)
        elif (kind := _kind(path)) is None:
            left_out[_NO_DOCUMENTS].append(path.name)
        elif code := forced or _language_of(path):
            files.append(InputFile(path, code, kind))
        else:
            left_out[_NO_LANGUAGE].append(path.name)
    return files, dict(left_out)


def _input_file(path: Path, forced: str) -> InputFile:
    if _INDEX.search(path.name):
        raise UserError(f"{path}: is the index of a multistream dump, which holds no text; leave it out")
    if (kind := _kind(path)) is None:
        compressions = ", ".join(COMPRESSIONS)
        raise UserError(
            f"{path}: unknown kind of file; names must end in .xml, .jsonl or .txt, then {compressions} or nothing, "
            "or in .parquet"
        )
    if not (code := forced or _language_of(path)):
        raise UserError(f"{path}: the name does not begin with a language code; give it as <code>={path}")
    return InputFile(path, code, kind)


def _reasons(left_out: dict[_Reason, list[str]]) -> str:
    return "; ".join(
        f"{len(names):,} {noun}{'s' * (len(names) > 1)}{reason} ({shortened(names, LISTED_NAMES)}{advice})"
        for (noun, reason, advice), names in left_out.items()
    )


def _kind(path: Path) -> Kind | None:
    matches = (kind for pattern, kind in _KINDS.items() if re.search(pattern + _COMPRESSION + "$", path.name))
    return next(matches, None)


def _language_of(path: Path) -> str:
    """Return the code that the name begins with, or "". Before "wiki", any two or three letters are one."""
    stem = path.name.split(".")[0]
    if match := re.match(rf"{_WIKI.pattern}(?=-|$)", stem):
        known = _known(match[1])
        return known or (language_code(match[1]) if len(match[1]) <= 3 else "")
    words = stem.split("-")
    starts = ("-".join(words[:count]) for count in range(len(words), 0, -1))
    if code := next((code for start in starts if (code := _known(start))), ""):
        return code
    folder = parquet_language(path) if path.suffix == ".parquet" else ""
    return language_code(folder) if folder else ""


def _known(text: str) -> str:
    try:
        code = language_code(text) if text == text.lower() else ""
    except UserError:
        return ""
    return code if code in LANGUAGES else ""


def _copies(files: Iterable[InputFile]) -> set[InputFile]:
    """Return the files whose pages others hold too: parts of a dump that is there as a whole, multistream twins."""
    dumps = [(file, match) for file in files if (match := _DUMP.match(file.path.name))]
    whole = {(file.path.parent, match["dump"]) for file, match in dumps if match["part"] == ".xml"}
    seen: set[tuple[Path, str, str]] = set()
    copies: set[InputFile] = set()
    for file, match in sorted(dumps, key=lambda dump: dump[1]["multistream"] is not None):
        dump = (file.path.parent, match["dump"])
        if (*dump, match["part"]) in seen or (match["part"] != ".xml" and dump in whole):
            copies.add(file)
        seen.add((*dump, match["part"]))
    return copies
