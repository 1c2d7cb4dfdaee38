"""Conversion of a page of wikitext to plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import unescape
from html.entities import html5

from unibert.corpus.wikitext.holes import close_holes
from unibert.corpus.wikitext.isolation import HOLE, Isolated
from unibert.corpus.wikitext.rendering import Renderer
from unibert.corpus.wikitext.tokens import Tokens

ENGLISH_PREFIXES = frozenset({"file", "image", "media", "category"})
"""Namespaces, in lower case, whose links have no text; every wiki accepts the English names."""

# A line of [[Prefix:Name]] links alone: categories or links to other languages, whatever the prefix
_LINE_OF_CATEGORIES = re.compile(
    r"^[^\S\n]*(?:\[\[[^\[\]|:\s][^\[\]|:\n]*:[^\s\[\]][^\[\]\n]*\]\][^\S\n]*)+$", re.MULTILINE
)
_BARE_URL = re.compile(r"https?://[^\s\[\]<>{}|\"\x01\x02]*[^\s\[\]<>{}|\"\x01\x02.,;:!?)]")
_ENTITY = re.compile("&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]*);")
_QUOTES = re.compile("''+")
_SPACES = re.compile(r"[^\S\n ][^\S\n]*| [^\S\n]+")  # all but single spaces, which are most and stay
_HAS_WORD = re.compile(r"\w")


def plain_text(wikitext: str, dropped_prefixes: Iterable[str] = ENGLISH_PREFIXES, title: str = "") -> str:
    """Return the running text of a wiki page; a line of the source stays a line, empty lines are dropped.

    Tables, references, comments, headings, galleries, files, category and interlanguage links are dropped, and
    templates but for those whose arguments are part of a sentence (`unibert.corpus.wikitext.shown_templates`). Other
    links are replaced by their text, list items lose their bullet. Markup that is never closed is text, as in
    MediaWiki, without the delimiter; files, rows of tables and beginnings of templates cost their line. Takes time
    proportional to the length of the page, whatever stands in it.

    Args:
        wikitext: source of the page.
        dropped_prefixes: the wiki's own names of its file and category namespaces, in lower case.
        title: of the page, for pages that call themselves ``{{PAGENAME}}``.
    """
    isolated = Isolated(wikitext)
    source = _LINE_OF_CATEGORIES.sub("", _with_apostrophes(isolated.source))
    text = Renderer(Tokens(source), frozenset(dropped_prefixes), title).text()
    if "://" in text:
        text = _BARE_URL.sub(HOLE, text)
    text = _ENTITY.sub(_character, isolated.restore(text))
    lines = (close_holes(line).strip() for line in _SPACES.sub(" ", text).split("\n"))
    return "\n".join(line for line in lines if _HAS_WORD.search(line))


def _character(entity: re.Match[str]) -> str:
    return unescape(entity[0]) if entity[1][0] == "#" or f"{entity[1]};" in html5 else entity[0]


def _with_apostrophes(source: str) -> str:
    """Turn ``'''`` into an apostrophe and ``''`` where MediaWiki does: ``l'''amour''`` is l'amour in italics."""
    if "'''" not in source:
        return source
    lines = source.split("\n")
    for number, line in enumerate(lines):
        if "'''" in line:
            lines[number] = _line_with_apostrophes(line)
    return "\n".join(lines)


def _line_with_apostrophes(line: str) -> str:
    runs = list(_QUOTES.finditer(line))
    lengths = [len(run[0]) for run in runs]
    bold = sum(length != 2 for length in lengths)
    italics = sum(length == 2 or length >= 5 for length in lengths)
    if not (bold % 2 and italics % 2):
        return line
    # Of the bold marks the first after a word of one letter, else after a longer word, else after a space
    starts = [run.start() for run in runs if len(run[0]) == 3]
    if not starts:
        return line
    at = min(starts, key=lambda start: (_WORD_BEFORE.index(_word_before(line, start)), start))
    return f"{line[:at]}&#39;{line[at + 1 :]}"


_WORD_BEFORE = ("letter", "word", "space")


def _word_before(line: str, position: int) -> str:
    if line[position - 1 : position] == " ":
        return "space"
    return "letter" if line[position - 2 : position - 1] == " " or position == 1 else "word"
