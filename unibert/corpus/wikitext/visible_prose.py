"""How much of the prose that readers of a page see is in its plain text.

The measure shares nothing with the cleaner. What it takes for prose it finds with a few rules that cannot fail in the
way a parser can: a delimiter that is not balanced removes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from itertools import compress, groupby
from operator import itemgetter

# With their content; a comment or element that is not closed is none
_COMMENT = re.compile(r"<!--(?:(?!<!--).)*?-->", re.DOTALL)
_ELEMENT = re.compile(
    r"<(ref|math|chem|gallery|timeline|syntaxhighlight|source|pre|table|score|imagemap|includeonly)\b"
    r"(?:[^<>]*/>|[^<>]*>(?:(?!<\1\b).)*?</\1\s*>)",
    re.DOTALL | re.IGNORECASE,
)
_BRACKET = re.compile(r"(?P<open>\{\{|\[\[|\n:*\{\|)|(?P<close>\}\}|\]\]|\n\|\})")
_OPENING = {"}}": "{{", "]]": "[[", "\n|}": "{|"}
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_URL = re.compile(r"(?:https?:)?//\S+")
_VARIANTS = re.compile(r"-\{|\}-")
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")
_NO_PROSE = tuple("|!={}<*#:;")
_GAP = "\x00"  # where something was removed, of which the text may show a part
_MIN_WORDS = 12
"""A line with fewer words is a title, an item or a remnant; a character of Chinese, Japanese or Thai is a word."""
_WINDOW = 3


def kept_share(wikitext: str, text: str) -> tuple[int, int]:
    """Return how many characters of words stand in the visible prose of a page, and how many of them in its text.

    Visible prose is the lines of at least twelve words that are no list, heading or row of a table, without balanced
    templates, tables, references and comments, and with the text of links. A word is kept if the text has it with the
    same words around it: in one of the runs of three words that it belongs to. Words beside something that was removed
    belong to a run on their other side, and fewer than three words between two such places do not count. A paragraph
    that is lost counts as lost, though all its words occur elsewhere. Takes time proportional to the lengths.
    """
    windows = _windows(text)
    visible = kept = 0
    for _, stretches in _prose_lines(wikitext):
        for words in stretches:
            if len(words) >= _WINDOW:
                visible += sum(map(len, words))
                kept += sum(map(len, compress(words, _are_kept(words, windows))))
    return visible, kept


def lost_prose(wikitext: str, text: str) -> list[list[tuple[str, bool]]]:
    """Return the lines of visible prose that lose words by the rule of `kept_share`.

    Returns:
        For each line its pieces, in order, with whether they are lost. "…" stands where something was removed.
    """
    windows = _windows(text)
    lines = []
    for sources, stretches in _prose_lines(wikitext):
        line: list[tuple[str, bool]] = []
        for source, words in zip(sources, stretches, strict=True):
            if line:
                line.append(("…", False))
            kept = _are_kept(words, windows) if len(words) >= _WINDOW else [True] * len(words)
            line += _pieces(source, kept)
        if any(is_lost for _, is_lost in line):
            lines.append(line)
    return lines


def _pieces(source: str, kept: list[bool]) -> list[tuple[str, bool]]:
    """Cut a text into runs of words that are kept and of words that are lost."""
    pieces: list[tuple[str, bool]] = []
    done = 0
    for is_kept, run in groupby(zip(_WORD.finditer(source), kept, strict=True), key=itemgetter(1)):
        words = [word for word, _ in run]
        if not is_kept:
            start, end = words[0].start(), words[-1].end()
            pieces += [(source[done:start], False), (source[start:end], True)]
            done = end
    return [*pieces, (source[done:], False)]


def _windows(text: str) -> set[tuple[str, ...]]:
    windows: set[tuple[str, ...]] = set()
    for line in text.split("\n"):
        words = _WORD.findall(line)
        windows.update(zip(*(words[start:] for start in range(_WINDOW)), strict=False))
    return windows


def _prose_lines(wikitext: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield the lines of visible prose: what stands between removed things, and the words of it."""
    for line in _visible(wikitext).split("\n"):
        if line.lstrip().startswith(_NO_PROSE):
            continue
        sources = line.split(_GAP)
        stretches = [_WORD.findall(source) for source in sources]
        if sum(map(len, stretches)) >= _MIN_WORDS:
            yield sources, stretches


def _are_kept(words: list[str], windows: set[tuple[str, ...]]) -> list[bool]:
    """Whether each of the words belongs to a window of the text."""
    kept = [False] * len(words)
    for start, window in enumerate(zip(*(words[start:] for start in range(_WINDOW)), strict=False)):
        if window in windows:
            kept[start : start + _WINDOW] = [True] * _WINDOW
    return kept


def _visible(wikitext: str) -> str:
    """Return a page without balanced markup, with the text of links."""
    source = "\n" + _ELEMENT.sub(_GAP, _COMMENT.sub("", wikitext.replace(_GAP, "")))
    return unescape(_VARIANTS.sub("", _TAG.sub("", _URL.sub("", _without_brackets(source)))).replace("''", ""))


def _without_brackets(source: str) -> str:
    pieces: list[str] = []
    opened: list[tuple[str, int]] = []
    unclosed = dict.fromkeys(_OPENING.values(), 0)
    done = 0
    for match in _BRACKET.finditer(source):
        pieces.append(source[done : match.start()])
        done = match.end()
        if match["open"]:
            kind = match["open"].lstrip("\n:")
            opened.append((kind, len(pieces)))
            unclosed[kind] += 1
            pieces.append("\n" if kind == "{|" else "")
        elif unclosed[_OPENING[match["close"]]]:
            if match["close"] == "]]" and opened[-1][0] != "[[":
                continue
            kind = ""
            while kind != _OPENING[match["close"]]:
                kind, start = opened.pop()
                unclosed[kind] -= 1
            # Of a link in a link the outer one is a file
            shown = kind == "[[" and not (opened and opened[-1][0] == "[[")
            content = _label("".join(pieces[start:])) if shown else _GAP
            del pieces[start:]
            pieces.append(content)
    pieces.append(source[done:])
    return "".join(pieces)


def _label(link: str) -> str:
    """Return the text of a link; none for one with a prefix, another link in it or several pipes: it may be a file."""
    target, _, label = link.partition("|")
    return _GAP if ":" in target or "|" in label or _GAP in target else label or target
