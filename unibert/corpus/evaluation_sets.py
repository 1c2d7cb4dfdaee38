"""Reading of evaluation sets whose text must not be in a corpus: all strings of files of any layout."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unibert.corpus.compression import COMPRESSIONS, UNREADABLE, open_text
from unibert.errors import UserError, short_message

_MAX_FIELD_CHARACTERS = 1 << 30  # of a field of a CSV file; Python's limit is 131,072
_MIN_COLUMN = 3  # lines that make a table of tokens; fewer may have equally many words by chance


def evaluation_files(paths: Iterable[str]) -> list[Path]:
    """Return the files of paths, of which folders are searched at any depth, sorted; hidden ones are left out.

    Raises:
        UserError: if a path does not exist, or a folder has no file.
    """
    found: set[Path] = set()
    for given in map(Path, paths):
        if not given.exists():
            raise UserError(f"decontaminate: {given}: no such file or folder")
        files = [given] if given.is_file() else [path for path in given.rglob("*") if path.is_file()]
        files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(given).parts)]
        if not files:
            raise UserError(f"decontaminate: {given}: no file in this folder")
        found.update(files)
    return sorted(found)


def strings_of(path: Path) -> Iterator[str]:
    """Yield all strings of a file: of JSON (.json), JSON lines (.jsonl) or CSV (.csv), else the fields of its lines.

    Where lines are tokens with their tags, as in CoNLL files, the columns of each sentence are yielded too.

    Raises:
        UserError: if the file cannot be read so.
    """
    kind = path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix
    try:
        with open_text(path) as stream:
            if kind == ".json":
                yield from _strings(json.load(stream))
            elif kind == ".jsonl":
                for line in stream:
                    if line.strip():
                        yield from _strings(json.loads(line))
            elif kind == ".csv":
                csv.field_size_limit(_MAX_FIELD_CHARACTERS)
                for row in csv.reader(stream):
                    yield from row
            else:
                yield from _fields(stream)
    except (EOFError, ValueError, RecursionError, csv.Error, *UNREADABLE) as error:
        raise UserError(
            f"decontaminate: {path} cannot be read as text{f' of kind {kind}' if kind else ''} "
            f"({short_message(error)}); name the files that hold text, as .txt, .tsv, .csv, .json or .jsonl"
        ) from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _strings(entry)


def _fields(lines: Iterable[str]) -> Iterator[str]:
    block: list[str] = []
    for line in lines:
        yield from line.split("\t")
        if line.strip():
            block.append(line)
        else:
            yield from _columns(block)
            block = []
    yield from _columns(block)


def _columns(block: list[str]) -> Iterator[str]:
    """Yield the columns of lines that have equally many words, without those of numbers and tags."""
    rows = [words for line in block if not line.startswith("# ") and (words := line.split())]
    if len(rows) < _MIN_COLUMN or len({len(row) for row in rows}) > 1:
        return
    for column in zip(*rows, strict=True):
        if 2 * len(set(column)) > len(column) and not all(map(str.isdecimal, column)):
            yield " ".join(column)
