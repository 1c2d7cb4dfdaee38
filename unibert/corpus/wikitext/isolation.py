"""What MediaWiki takes out of a page before it looks at any other markup: comments and extension tags."""

from __future__ import annotations

import re

from unibert.corpus.wikitext.tags import DROPPED_EXTENSIONS

HOLE = "\x02"
"""Stands in rendered text where something was left out; `unibert.corpus.wikitext.holes` closes it."""

_UNUSED = re.compile("[\x00-\x08]")  # what stands for holes and literal text must not be in the source
_OPENING = re.compile(rf"<(?:!--|(nowiki|{'|'.join(sorted(DROPPED_EXTENSIONS))})(?=[\s/>]))", re.IGNORECASE)
_CLOSINGS = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in (*DROPPED_EXTENSIONS, "nowiki")}
_REST_OF_LINE = re.compile(r"[ \t]*\n")
_MAX_INDENT = 80
_LITERAL = re.compile("\x01([0-9]+)\x01")


class Isolated:
    """A page without comments and extension tags, and the literal text of its ``<nowiki>`` elements."""

    def __init__(self, wikitext: str) -> None:
        """Isolate them in one pass: a search starts where the last one ended, and one that failed is not repeated."""
        self._literals: list[str] = []
        source = _UNUSED.sub("", wikitext)
        pieces: list[str] = []
        done = 0
        tag_end = 1  # of the first ">" after the last tag's start; 0 if there is none
        unclosed: set[str] = set()
        for opening in _OPENING.finditer(source):
            start, name = opening.start(), (opening[1] or "").lower()
            if start < done or name in unclosed:
                continue
            if name:
                if 0 < tag_end <= start + 1:
                    tag_end = source.find(">", start) + 1
                if not tag_end:  # no tag is complete from here on
                    continue
                if source[tag_end - 2] == "/":
                    content_end = end = tag_end
                elif closing := _CLOSINGS[name].search(source, tag_end):
                    content_end, end = closing.span()
                else:
                    unclosed.add(name)
                    continue
                replacement = HOLE if name != "nowiki" else self._keep(source[tag_end:content_end])
            else:
                end = _comment_end(source, start)
                replacement = ""
            pieces += source[done:start], replacement
            done = end
        pieces.append(source[done:])
        self.source = "".join(pieces)

    def _keep(self, literal: str) -> str:
        self._literals.append(literal)
        return f"\x01{len(self._literals) - 1}\x01"

    def restore(self, text: str) -> str:
        """Put the literal text back."""
        return _LITERAL.sub(lambda match: self._literals[int(match[1])], text) if self._literals else text


def _comment_end(source: str, start: int) -> int:
    """Return where a comment ends, with its line if nothing else stands there, as in MediaWiki."""
    end = source.find("-->", start + 4)
    if end < 0:
        return len(source)
    end += 3
    line_start = source.rfind("\n", max(0, start - _MAX_INDENT), start) + 1
    if (line_start or start <= _MAX_INDENT) and not source[line_start:start].strip():
        rest = _REST_OF_LINE.match(source, end)
        return rest.end() if rest else end
    return end
