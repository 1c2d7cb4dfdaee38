"""What the HTML pages of this package have in common: headline numbers, findings, tables, and their rendering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader


@dataclass(frozen=True)
class Tile:
    """One headline number with a note that puts it into context."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """A sentence that the numbers support; ``alarm`` marks those that need a closer look."""

    text: str
    alarm: bool


@dataclass(frozen=True)
class Table:
    """The numbers of a figure; the first column holds names."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: Sequence[str] = ()
    """A last row that sorting leaves where it is."""


def render(template: str, **content: Any) -> str:
    """Return the page that a template of this folder makes of its content, all of which is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(content)
