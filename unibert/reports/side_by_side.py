"""Two texts side by side for a terminal, each line of one beside the line of the other that it became."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

_WORD = re.compile(r"\w+")
_SEARCHED_LINES = 8
_SEPARATOR = " │ "


def side_by_side(left: Sequence[str], right: Sequence[str], width: int) -> list[str]:
    """Return rows of at most ``width`` columns, with the lines of ``left`` and ``right`` wrapped beside each other.

    A line of the right stands beside the first line of the left that has most of its words, if the order allows.
    """
    column = (width - len(_SEPARATOR)) // 2
    rows = []
    for left_line, right_line in _pairs(left, right):
        cells, others = wrapped(left_line, column), wrapped(right_line, column)
        for number in range(max(len(cells), len(others))):
            cell = cells[number] if number < len(cells) else ""
            other = others[number] if number < len(others) else ""
            rows.append(f"{cell}{' ' * (column - columns(cell))}{_SEPARATOR}{other}".rstrip())
    return rows


def columns(text: str) -> int:
    """Return the columns that a text takes on a terminal: two for wide characters, none for marks."""
    return sum(map(_columns, text))


def wrapped(line: str, width: int) -> list[str]:
    """Cut a line into rows of at most ``width`` columns, at spaces if there are some."""
    rows = []
    start = taken = 0
    space = -1
    for position, character in enumerate(line):
        if character == " ":
            space = position
        taken += _columns(character)
        while taken > width and position > start:
            cut = space if space > start else position
            rows.append(line[start:cut])
            start = cut + (line[cut] == " ")
            taken = columns(line[start : position + 1])
    return [*rows, line[start:]]


@cache
def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _pairs(left: Sequence[str], right: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield all lines of both in order, those in one pair that belong together."""
    words = [set(_WORD.findall(line)) for line in right]
    done = 0
    for line in left:
        own = set(_WORD.findall(line))
        candidates = range(done, min(done + _SEARCHED_LINES, len(right)))
        found = next((number for number in candidates if 2 * len(words[number] & own) > len(words[number])), None)
        if found is None:
            yield line, ""
            continue
        for number in range(done, found):
            yield "", right[number]
        yield line, right[found]
        done = found + 1
    for number in range(done, len(right)):
        yield "", right[number]
