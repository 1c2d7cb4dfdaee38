"""What cleaning loses of the visible prose of wiki pages, summed over a language, with the pages that lose most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unibert.corpus.readers import Document
from unibert.corpus.spool import stable_hash
from unibert.corpus.wikitext.visible_prose import kept_share

_WORST_PAGES = 10
# Measuring a page takes nearly as long as cleaning it
ONE_PAGE_IN = 16
ALL_PAGES_BYTES = 8 << 20
"""Of files up to this size, all pages are measured, of others one in 16."""


@dataclass(frozen=True)
class LossyPage:
    """A page that cleaning takes visible prose from."""

    id: str
    title: str
    lost: int
    """Number of characters of words that were lost."""


@dataclass
class ProseLoss:
    """Sums over pages, see `unibert.corpus.wikitext.visible_prose`; equal for any order of pages and parts."""

    pages: int = 0
    """Number of measured pages, whether or not a filter drops them."""
    visible: int = 0
    """Characters of words in the visible prose of their sources."""
    kept: int = 0
    """Those of them that are in their plain text."""
    worst: list[LossyPage] = field(default_factory=list)
    """The pages that lost most, at most 10, in that order."""

    def measure(self, document: Document) -> None:
        """Add a wiki page, before its text is normalised."""
        visible, kept = kept_share(document.wikitext, document.text)
        page = LossyPage(document.id, document.title, visible - kept)
        self.add(ProseLoss(1, visible, kept, [page] if visible > kept else []))

    def add(self, other: ProseLoss) -> None:
        """Add the pages of another part of the language."""
        self.pages += other.pages
        self.visible += other.visible
        self.kept += other.kept
        if other.worst:
            pages = {*self.worst, *other.worst}
            self.worst = sorted(pages, key=lambda page: (-page.lost, page.id, page.title))[:_WORST_PAGES]

    def content(self) -> dict[str, Any]:
        """Return the entry of report.json."""
        return {
            "measured_pages": self.pages,
            "visible_characters": self.visible,
            "kept_characters": self.kept,
            "worst_pages": [asdict(page) for page in self.worst],
        }

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> ProseLoss:
        """Return the sums whose `content` is given."""
        return cls(
            content["measured_pages"],
            content["visible_characters"],
            content["kept_characters"],
            [LossyPage(**page) for page in content["worst_pages"]],
        )


def kept_percentage(visible: int, kept: int) -> str:
    """Return a share as text, rounded down, so that only a share without loss is 100 %; "" if nothing is visible."""
    return f"{10_000 * kept // visible / 100:.2f} %" if visible else ""


class PageSample:
    """The pages of a file that are measured: all of a small file, else one in 16 by the hash of its id."""

    def __init__(self, path: Path) -> None:
        self._one_in = 1 if path.stat().st_size <= ALL_PAGES_BYTES else ONE_PAGE_IN

    def __contains__(self, document: Document) -> bool:
        return bool(document.wikitext) and stable_hash(document.id) % self._one_in == 0
