"""Conversion of wikitext to plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, HTMLEntity, Node, Tag, Text, Wikilink

from unibert.languages import LANGUAGES

ENGLISH_PREFIXES = frozenset({"file", "image", "media", "category"})
"""Namespaces, in lower case, whose links have no text; every wiki accepts the English names."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DROPPED_TAGS = _words(
    "ref references table gallery imagemap math chem ce score timeline graph mapframe maplink hiero syntaxhighlight "
    "source code pre style script templatestyles templatedata section categorytree inputbox hr"
)
_BLOCK_TAGS = _words("div p blockquote center ul ol dl table tr")
_FILE_NAME = re.compile(
    r"[^:|]+:.+\.(jpe?g|png|svg|gif|tiff?|webp|og[agv]|webm|mp3|wav|pdf|djvu|stl)\s*$", re.IGNORECASE
)
# A line of [[Prefix:Name]] links alone: categories or links to other languages, whatever the prefix
_LINE_OF_CATEGORIES = re.compile(r"^\s*(\[\[[^\[\]|:\s][^\[\]|:]*:[^\s\[\]][^\[\]]*\]\]\s*)+$", re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?(-->|\Z)", re.DOTALL)
_MAGIC_WORD = re.compile(r"__[^\W\d_]+__")
_VARIANTS = re.compile(r"-\{(?P<flags>[^{}|]*\|)?(?P<rules>[^{}|]*)\}-")
# Remains of unbalanced markup: lines with pieces of tables, templates or files are dropped, single tags cut out
_LINE_OF_MARKUP = re.compile(r"^\s*(\{?\||!.*(\|\||!!|=))|\{\{|\}\}|\{\||\|\}|\[\[\S+:|<t[rdh]\b")
_LONE_MARKUP = re.compile(r"<ref\b.*|</?[a-zA-Z][^<>]*>|\[\[|\]\]|'{2,}|^\s*[=*#:;]+")
_BRACKETS = re.compile(r"[(（\[]\s*[,;:،；，、.\s]*[)）\]]")
_BRACKET_START = re.compile(r"([(（])\s*[,;:،；，、\s]+")
_SPACES = re.compile(r"[^\S\n]+")
_SPACE_BEFORE_COMMA = re.compile(r" +([,.;:!?)](?:\s|$))")
_HAS_WORD = re.compile(r"\w")

# For markup that is never closed, the parser retries from every opening, in time proportional to the text after it. On
# one core this many characters take about four seconds.
_MAX_RETRIED_CHARACTERS = 10_000_000
_MAX_DEPTH = 40  # the parser's limit; markup nested deeper counts as never closed
_DELIMITER = re.compile(
    r"(?P<open>\{\{|\[\[|\{\||\[(?=https?:|//)|<(?P<tag>[a-zA-Z]+)(?P<rest>[^<>]*>)?)"
    r"|(?P<close>\}\}|\]\]|\|\}|\]|</(?P<closed_tag>[a-zA-Z]+)\s*>)"
)
_OPENING_OF = {"}}": "{{", "]]": "[[", "|}": "{|", "]": "["}
_VOID_TAGS = _words("br wbr hr meta link img li dt dd th td tr")


class WikitextTooComplex(ValueError):
    """The markup would take the parser too long."""


def plain_text(wikitext: str, dropped_prefixes: Iterable[str] = ENGLISH_PREFIXES) -> str:
    """Return the running text of a wiki page; a line of the source stays a line, empty lines are dropped.

    Templates, tables, references, comments, headings, galleries, files, category and interlanguage links are dropped.
    Other links are replaced by their text, list items lose their bullet.

    Args:
        wikitext: source of the page.
        dropped_prefixes: the wiki's own names of its file and category namespaces, in lower case.

    Raises:
        WikitextTooComplex: if unbalanced markup would make parsing take more than a few seconds.
    """
    wikitext = _LINE_OF_CATEGORIES.sub("", _COMMENT.sub("", wikitext))
    if _retried_characters(wikitext) > _MAX_RETRIED_CHARACTERS:
        raise WikitextTooComplex(f"{len(wikitext)} characters of wikitext with markup that is never closed")
    try:
        nodes = mwparserfromhell.parse(wikitext).nodes
    except mwparserfromhell.parser.ParserError as error:
        raise WikitextTooComplex(str(error)) from error
    text = _render(nodes, frozenset(dropped_prefixes))
    lines = (_clean_line(line) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _render(nodes: Iterable[Node], dropped_prefixes: frozenset[str]) -> str:
    pieces = []
    for node in nodes:
        match node:
            case Text():
                pieces.append(node.value)
            case Wikilink():
                pieces.append(_link_text(node, dropped_prefixes))
            case ExternalLink() if node.brackets and node.title is not None:
                pieces.append(_render(node.title.nodes, dropped_prefixes))
            case HTMLEntity():
                pieces.append(node.normalize())
            case Tag():
                pieces.append(_tag_text(node, dropped_prefixes))
    return "".join(pieces)


def _link_text(link: Wikilink, dropped_prefixes: frozenset[str]) -> str:
    title = str(link.title).strip()
    prefix = title.partition(":")[0].strip().lower() if ":" in title else ""
    if prefix in dropped_prefixes or prefix in LANGUAGES or _FILE_NAME.match(title):
        return ""
    if link.text is not None:
        return _render(link.text.nodes, dropped_prefixes)
    return title.removeprefix(":")


def _tag_text(tag: Tag, dropped_prefixes: frozenset[str]) -> str:
    name = str(tag.tag).strip().lower()
    if name == "br":
        return " "
    if name in _DROPPED_TAGS or tag.contents is None:
        return ""
    text = _render(tag.contents.nodes, dropped_prefixes)
    return f"\n{text}\n" if name in _BLOCK_TAGS else text


def _clean_line(line: str) -> str:
    if _LINE_OF_MARKUP.search(line):
        return ""
    line = _MAGIC_WORD.sub("", _VARIANTS.sub(_first_variant, line))
    line = _BRACKET_START.sub(r"\1", _BRACKETS.sub("", _LONE_MARKUP.sub("", line)))
    line = _SPACE_BEFORE_COMMA.sub(r"\1", _SPACES.sub(" ", line)).strip()
    return line if _HAS_WORD.search(line) else ""


def _first_variant(match: re.Match[str]) -> str:
    """``-{zh-hans:A;zh-hant:B}-`` gives its first variant, ``-{A}-`` its text, ``-{H|…}-`` (a rule) nothing."""
    if match["flags"]:
        return ""
    first = match["rules"].split(";")[0]
    return re.sub(r"^\s*[a-z-]+\s*:", "", first)


def _retried_characters(wikitext: str) -> int:
    opened: dict[str, list[int]] = {}
    retried = 0
    for match in _DELIMITER.finditer(wikitext):
        tag = (match["tag"] or match["closed_tag"] or "").lower()
        complete = match["rest"] and (tag in _VOID_TAGS or match["rest"].endswith("/>"))
        if match["open"] and not complete:
            positions = opened.setdefault(tag or match["open"], [])
            if len(positions) >= _MAX_DEPTH:
                retried += len(wikitext) - match.start()
            positions.append(match.start())
        elif match["close"] and (positions := opened.get(tag or _OPENING_OF[match["close"]], [])):
            positions.pop()
    return retried + sum(len(wikitext) - position for positions in opened.values() for position in positions)
