"""Tables, lists and numbers for people to read on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

TEXT_WIDTH = 110


def ruled_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], groups: Sequence[tuple[str, int]] = ()
) -> list[str]:
    """Lines under a ruled header, the first column left-aligned, the others right-aligned.

    ``groups``: titles above that many columns each, from the left.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    titles, first = "", 0
    for title, number in groups:
        room = sum(widths[first : first + number]) + 2 * (number - 1)
        widths[first] += max(0, len(title) - room)
        titles += title.center(max(room, len(title)), "·" if title else " ") + "  "
        first += number
    lines = [
        "  ".join(
            [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]
        ).rstrip()
        for cells in (header, *rows)
    ]
    return [*([titles.rstrip()] if titles else []), lines[0], "-" * max(map(len, lines)), *lines[1:]]


def described_lines(entries: Mapping[str, str]) -> list[str]:
    """Lines of name and text, the text wrapped beside its name."""
    indent = 4 + max(map(len, entries))
    lines = []
    for name, text in entries.items():
        lines += textwrap.wrap(
            text,
            TEXT_WIDTH,
            initial_indent=f"  {name}".ljust(indent),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
    return lines


def short(number: float) -> str:
    """A count in at most six characters: 12,345, 123k, 1.23M, 12.3B."""
    return f"{number:,.0f}" if number < 1e5 else with_unit(number, "kMBT")


def percent(share: float) -> str:
    """A share in at most six characters: 12.3%, 0.45%, 0.006%, <.001%, 0."""
    if share < 5e-6:
        return "<.001%" if share else "0"
    return f"{share:.{1 if share >= 0.1 else 2 if share >= 5e-4 else 3}%}"


def with_unit(number: float, units: Sequence[str], space: str = "") -> str:
    """Three digits and the unit of 1000, 1000², …"""
    power = next((power for power in range(1, len(units)) if number < 999.5 * 1000**power), len(units))
    return f"{three_digits(number / 1000**power)}{space}{units[power - 1]}"


def three_digits(number: float) -> str:
    """12,345, 123, 12.3, 1.23."""
    return f"{number:,.{0 if number >= 99.95 else 1 if number >= 9.995 else 2}f}"
