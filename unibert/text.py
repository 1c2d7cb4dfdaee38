"""Tables, lists and numbers for people to read on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence

TEXT_WIDTH = 110


def shortened(items: Sequence[str], most: int) -> str:
    """Return the first items and the number of the others: ``a, b, c and 8 more``."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more:,} more" if more > 0 else "")


def plain_table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of aligned columns: the first column left-aligned, the others right-aligned."""
    rows = list(rows)
    widths = _column_widths(rows)
    return ["  ".join(_padded(cells, widths)).rstrip() for cells in rows]


def ruled_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], groups: Sequence[tuple[str, int]] = ()
) -> list[str]:
    """Lines as in `plain_table` with a rule under the header.

    ``groups``: titles above that many columns each, from the left.
    """
    rows = [header, *rows]
    widths = _column_widths(rows)
    titles, first = "", 0
    for title, number in groups:
        room = sum(widths[first : first + number]) + 2 * (number - 1)
        widths[first] += max(0, len(title) - room)
        titles += title.center(max(room, len(title)), "·" if title else " ") + "  "
        first += number
    lines = ["  ".join(_padded(cells, widths)).rstrip() for cells in rows]
    return [*([titles.rstrip()] if titles else []), lines[0], "-" * max(map(len, lines)), *lines[1:]]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose source is aligned as in `plain_table`."""
    rows = [header, *rows]
    widths = _column_widths(rows)
    rule = "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths))
    lines = [f"| {' | '.join(_padded(cells, widths))} |" for cells in rows]
    return [lines[0], f"|{rule}|", *lines[1:]]


def compact_markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Container[str]
) -> list[str]:
    """Lines of a Markdown table whose source is not aligned, for cells of very different lengths.

    ``numbers``: names of the columns that are right-aligned when rendered.
    """
    rule = ["---:" if name in numbers else "---" for name in header]
    return [
        "|" + "|".join(f" {escaped} " if (escaped := cell.replace("|", "\\|")) else " " for cell in cells) + "|"
        for cells in (header, rule, *rows)
    ]


def _column_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _padded(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    pairs = zip(cells, widths, strict=True)
    return [cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs)]


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


def duration(seconds: float) -> str:
    """A time in at most nine characters: 12 s, 12 min, 12.3 h, 12.3 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86400 else f"{seconds / 86400:.1f} days"
