"""Reading of pairs of sentences with human scores of their similarity."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from unibert.errors import UserError
from unibert.evaluation.packed_files import READ_ERRORS, open_text, unpacked_name

SETS_NAME = "sts.yaml"
_NAMED_FILE = re.compile(r".+-([a-z]{2,3})-(train|dev|test)\.(csv|tsv)")
_UNNAMED_FILE = re.compile(r"sts-(train|dev|test)\.tsv")
_LANGUAGES_OF_FOLDERS = {"korsts": "ko"}
_COLUMNS = ("sentence1", "sentence2", "score")


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences of one language with human scores of their similarity."""

    language: str
    split: str
    file: str
    """Path within the folder of the sets."""
    first: list[str]
    second: list[str]
    scores: list[float]
    left_out: int
    """Rows without two sentences and a score."""

    def __len__(self) -> int:
        return len(self.scores)


def read_pairs(folder: Path, source: str, languages: Sequence[str] | None = None) -> list[SentencePairs]:
    """Read the test sets of a folder and its subfolders, of all languages or some, and the dev set of ``source``.

    The files of stsb-multi-mt (``stsb-CODE-SPLIT.csv``) and KorSTS (``korsts/sts-SPLIT.tsv``) are recognised, packed by
    xz, gzip or bzip2 or not. ``sts.yaml`` in the folder lists other files::

        - {file: sick.tsv, language: en, split: test, columns: [sentence_A, sentence_B, relatedness_score]}

    with columns by name or number from 0: the two sentences, and the score.

    Raises:
        UserError: if there is no such folder or no set in it, a file is malformed, or a named language has no test set.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one with pairs of sentences, such as stsb-multi-mt")
    wanted = None if languages is None else set(languages)
    found = [
        _read(folder, described)
        for described in (*_listed(folder), *_recognised(folder))
        if (described.language == source and described.split == "dev")
        or (described.split == "test" and (wanted is None or described.language in wanted))
    ]
    tested = {pairs.language for pairs in found if pairs.split == "test"}
    if missing := sorted((wanted or set()) - tested):
        raise UserError(f"languages: {folder} has no test set of {missing[0]}; leave it out")
    if not tested:
        raise UserError(
            f"{folder} has no test set: it needs stsb-CODE-test.csv, korsts/sts-test.tsv or a list {SETS_NAME}"
        )
    for language in tested:
        files = [pairs.file for pairs in found if (pairs.language, pairs.split) == (language, "test")]
        if len(files) > 1:
            raise UserError(f"{folder}: {files[0]} and {files[1]} are both test sets of {language}; keep one of them")
    return sorted(found, key=lambda pairs: (pairs.language, pairs.split))


class _Described(NamedTuple):
    path: Path
    language: str
    split: str
    columns: tuple[str | int, ...]
    """Both sentences and the score, by name or number."""


def _listed(folder: Path) -> Iterator[_Described]:
    path = folder / SETS_NAME
    if not path.is_file():
        return
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        for entry in entries:
            columns = tuple(entry.get("columns", _COLUMNS))
            file, language, split = (entry[key] for key in ("file", "language", "split"))
            if len(columns) != 3 or split not in ("train", "dev", "test"):
                raise ValueError("three columns and a split of train, dev or test are needed")
            yield _Described(folder / file, str(language), split, columns)
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is no list of sets with file, language, split and columns ({' '.join(str(error).split())})"
        ) from error


def _recognised(folder: Path) -> Iterator[_Described]:
    for path in sorted(folder.rglob("*")):
        name = unpacked_name(path)
        if match := _NAMED_FILE.fullmatch(name):
            yield _Described(path, match[1], match[2], _COLUMNS)
        elif (match := _UNNAMED_FILE.fullmatch(name)) and path.parent.name in _LANGUAGES_OF_FOLDERS:
            yield _Described(path, _LANGUAGES_OF_FOLDERS[path.parent.name], match[1], _COLUMNS)


def _read(folder: Path, described: _Described) -> SentencePairs:
    path = described.path
    # Tab-separated sets hold quotation marks as text.
    dialect: dict[str, Any] = (
        {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if unpacked_name(path).endswith(".tsv") else {}
    )
    first, second, scores, left_out = [], [], [], 0
    try:
        with open_text(path) as lines:
            rows = csv.reader(lines, **dialect)
            places = None
            for row in rows:
                if places is None:
                    places, is_header = _places(path, row, described.columns)
                    if is_header:
                        continue
                cells = [row[place].strip() if place < len(row) else "" for place in places]
                score = _number(cells[2])
                if cells[0] and cells[1] and score is not None:
                    first.append(cells[0])
                    second.append(cells[1])
                    scores.append(score)
                else:
                    left_out += 1
    except (*READ_ERRORS, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as sentence pairs ({error})") from error
    if len(scores) < 2:
        raise UserError(f"{path}: has fewer than two rows with two sentences and a score")
    file = str(path.relative_to(folder))
    return SentencePairs(described.language, described.split, file, first, second, scores, left_out)


def _places(path: Path, row: Sequence[str], columns: tuple[str | int, ...]) -> tuple[list[int], bool]:
    """Return the places of both sentences and the score, by the first row, and whether this names the columns."""
    if all(isinstance(column, int) for column in columns):
        return [int(column) for column in columns], _number(row[int(columns[2])]) is None
    if all(column in row for column in columns):
        return [row.index(str(column)) for column in columns], True
    if columns == _COLUMNS and len(row) == 3 and _number(row[2]) is not None:
        return [0, 1, 2], False
    raise UserError(
        f"{path}: its first row has no columns {', '.join(map(str, columns))}; name its columns in {SETS_NAME}"
    )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
