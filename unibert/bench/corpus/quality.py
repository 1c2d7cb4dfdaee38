"""What cleaners keep of the prose of pages, and what they leave of the markup, by rules that are the same for all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unibert.bench.corpus.cleaning import Dump, text_file
from unibert.corpus.inputs import InputFile
from unibert.corpus.readers import DocumentReader
from unibert.corpus.wikitext.visible_prose import kept_share

LEFTOVER = re.compile(
    r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|\|\||''+"
    r"|</?(?:ref|br|small|div|span|sub|sup|table|t[rdh]|center|i|b)\b[^>]*>"
    r"|&(?:nbsp|ndash|mdash|amp|lt|gt|#\d+);|-\{|\}-|__[A-Z]+__"
)
"""A piece of markup that text should not have: braces, brackets, quotes, tags, entities, variants, switches."""

_PER_CHARACTERS = 10_000
_WORST_PAGES = 5
_SUMS = (
    "pages",
    "missing_pages",
    "wikitext_bytes",
    "compared_pages",
    "characters",
    "visible",
    "kept",
    "leftovers",
)


@dataclass
class Quality:
    """Sums over the pages of a cleaner; from ``compared_pages`` on, over those of which all cleaners have a text."""

    pages: int = 0
    """Articles of the dumps."""
    missing_pages: int = 0
    """Those of which the cleaner has no text."""
    wikitext_bytes: int = 0
    """Of the others."""
    compared_pages: int = 0
    characters: int = 0
    """Characters of text."""
    visible: int = 0
    """Characters of words in the visible prose of the sources, see `unibert.corpus.wikitext.visible_prose`."""
    kept: int = 0
    """Those of them that are in the text."""
    leftovers: int = 0
    """Number of pieces of markup in the text."""
    worst: list[tuple[int, str, str]] = field(default_factory=list)
    """The pages that lost most: characters, language, title."""

    def count(self, wikitext: str, text: str | None) -> None:
        """Add a page; ``text`` is None if the cleaner has none."""
        self.pages += 1
        self.missing_pages += text is None
        self.wikitext_bytes += len(wikitext.encode()) if text is not None else 0

    def compare(self, language: str, title: str, wikitext: str, text: str) -> None:
        """Add what the text of a page keeps and leaves."""
        visible, kept = kept_share(wikitext, text)
        lossy = [(visible - kept, language, title)] if visible > kept else []
        self.add(
            Quality(
                compared_pages=1,
                characters=len(text),
                visible=visible,
                kept=kept,
                leftovers=count_leftovers(text),
                worst=lossy,
            )
        )

    def add(self, other: Quality) -> None:
        """Add other pages."""
        for key in _SUMS:
            setattr(self, key, getattr(self, key) + getattr(other, key))
        self.worst = sorted(self.worst + other.worst, key=lambda page: (-page[0], *page[1:]))[:_WORST_PAGES]

    def content(self) -> dict[str, Any]:
        """Return the sums and their ratios for the results."""
        ratios = {
            "lost_share": 1 - self.kept / self.visible if self.visible else 0.0,
            "leftovers_per_10k": _PER_CHARACTERS * self.leftovers / self.characters if self.characters else 0.0,
        }
        worst = [dict(zip(("lost", "language", "title"), page, strict=True)) for page in self.worst]
        return asdict(self) | ratios | {"worst": worst}


def count_leftovers(text: str) -> int:
    """Return the number of pieces of markup in a text."""
    return sum(1 for _ in LEFTOVER.finditer(text))


def compare_texts(dumps: Sequence[Dump], folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Compare texts with their pages, matched by page id.

    The pages are all articles of wikitext that are no redirects. What is kept and left is counted over the pages of
    which all cleaners have a text; the others are counted as missing.

    Args:
        dumps: the dumps.
        folders: folder of each cleaner's texts.

    Returns:
        For each cleaner the content of its `Quality`, and "languages" with that of each language.
    """
    qualities: dict[str, dict[str, Quality]] = {name: {} for name in folders}
    for number, (path, language) in enumerate(dumps):
        texts = {name: _Texts(text_file(folder, number)) for name, folder in folders.items()}
        # In a preview that wants no page, the reader yields sources and cleans nothing.
        for page in DocumentReader(InputFile(Path(path), language, "wiki"), preview=lambda *_: False):
            if page.dropped in ("", "too_long_page"):
                page_texts = {name: of_dump.get(page.id) for name, of_dump in texts.items()}
                for name, text in page_texts.items():
                    quality = qualities[name].setdefault(language, Quality())
                    quality.count(page.wikitext, text)
                    if text is not None and None not in page_texts.values():
                        quality.compare(language, page.title, page.wikitext, text)
    compared = {}
    for name, by_language in qualities.items():
        total = Quality()
        for quality in by_language.values():
            total.add(quality)
        languages = {language: quality.content() for language, quality in sorted(by_language.items())}
        compared[name] = total.content() | {"languages": languages}
    return compared


class _Texts:
    """The texts of a dump by page id, which stay on disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._offsets: dict[str, int] = {}
        offset = 0
        for line in self._file:
            self._offsets[str(json.loads(line)["id"])] = offset
            offset += len(line)

    def get(self, page_id: str) -> str | None:
        """Return the text of a page; None if there is none."""
        if page_id not in self._offsets:
            return None
        self._file.seek(self._offsets[page_id])
        text: str = json.loads(self._file.readline())["text"]
        return text
