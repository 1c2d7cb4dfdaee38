"""Rendering of the tokens of a page as text with holes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from unibert.corpus.wikitext.isolation import HOLE
from unibert.corpus.wikitext.shown_templates import Arguments, Show, shown, shown_function, shown_variable
from unibert.corpus.wikitext.switches import is_switch
from unibert.corpus.wikitext.tags import INLINE_TAGS, LINE_TAGS, SPACE_TAGS
from unibert.corpus.wikitext.tokens import Tokens
from unibert.corpus.wikitext.variants import shown_variant
from unibert.languages import LANGUAGES

_FILE_NAME = re.compile(
    r"[^:|]+:.+\.(jpe?g|png|svg|gif|tiff?|webp|og[agv]|webm|mp3|wav|pdf|djvu|stl)\s*$", re.IGNORECASE
)
_TAG_NAME = re.compile(r"</?([a-zA-Z]+[1-6]?)(?=[\s/>])")
_ESCAPED = re.compile("&[#l]|\x01")  # an entity that may be a bracket, or text from <nowiki>
_PARAMETER = re.compile(r"\s*[\w .-]{1,40}=")
_MAX_DEPTH = 40  # MediaWiki's limit for templates in templates; what is nested deeper shows nothing there either


@dataclass
class _Frame:
    """Something open: a table, or a template or language variant whose content is shown."""

    start: int
    """Where its content begins in the output."""
    end: int
    """Position of the closing delimiter; for a table, which may have none, that of what it stands in."""
    kind: Literal["table", "template", "variant"]
    show: Show = str
    bounds: list[int] = field(default_factory=list)
    """Where in the output a template's arguments begin; for a table, where its rows begin and end, in turn."""


class Renderer:
    """Renders the tokens of a page in one pass, with a stack of open tables, templates and variants."""

    def __init__(self, tokens: Tokens, dropped_prefixes: frozenset[str], title: str) -> None:
        self._texts, self._delimiters = tokens.texts, tokens.delimiters
        self._closing, self._pipe = tokens.closing, tokens.pipe
        self._dropped_prefixes = dropped_prefixes
        self._title = title
        self._output: list[str] = []
        self._frames: list[_Frame] = []
        self._closed_links: set[int] = set()
        self._literal_ends: set[int] = set()
        self._frame_ends: set[int] = set()
        self._depth = 0  # of templates and variants
        self._in_term = False
        self._in_external_link = False

    def text(self) -> str:
        """Return the text, with `HOLE` where something was left out."""
        output, texts, delimiters = self._output, self._texts, self._delimiters
        position = 0
        last = len(delimiters) - 1
        while True:
            text = texts[position]
            if text:
                if self._in_term and ":" in text:
                    text = text.replace(":", " ", 1)
                    self._in_term = False
                output.append(text)
            if position >= last:
                break
            delimiter = delimiters[position]
            first = delimiter[0]
            if first == "\n":
                position = self._line_start(position, delimiter)
            elif first == "[":
                position = self._link(position, delimiter)
            elif first == "<":
                self._tag(delimiter)
            elif first == "'":
                # Four are an apostrophe and bold, more than five are apostrophes and both
                if len(delimiter) > 3 and len(delimiter) != 5:
                    output.append("'" * max(1, len(delimiter) - 5))
            elif first == "{":
                position = self._template(position)
            elif first == "}":
                self._end(position, delimiter)
            elif first == "|":
                self._pipes(delimiter)
            elif first == "]":
                self._bracket(position, delimiter)
            elif first == "-":
                position = self._variant(position)
            elif not is_switch(delimiter):
                output.append(delimiter)
            position += 1
        while self._frames:
            self._end_unclosed_table()
        return "".join(output)

    def _line_start(self, position: int, delimiter: str) -> int:
        """Return the position of the last delimiter that the line's start takes away."""
        output, frames = self._output, self._frames
        self._in_term = self._in_external_link = False
        kind = delimiter.strip(" \t:\n")[:2]
        table = frames[-1] if frames and frames[-1].kind == "table" else None
        if kind[:1] == "{":
            self._start_table()
        elif kind == "|}":
            if table:
                frames.pop()
                del output[table.start :]
            else:
                position = self._end_of_line(position)
        elif kind[:1] == "|" or (kind == "!" and table):
            if table:
                if len(table.bounds) % 2 == 0:
                    table.bounds.append(len(output))
            elif frames and frames[-1].kind == "template":
                frames[-1].bounds.append(len(output))
                return position
            elif frames:
                output.append("\n|")
                return position
            elif kind != "|" or self._is_remnant(position):
                position = self._end_of_line(position)
        elif table and len(table.bounds) % 2:
            table.bounds.append(len(output))
        output.append("\n!" if kind == "!" and not table else "\n")
        if kind == "|" and not frames and self._texts[position + 1][:1].strip():  # |x| is a number
            output.append("|")
        self._in_term = kind[:1] == ";"
        return position

    def _end_of_line(self, position: int) -> int:
        """Return the position before the next line, or before the end of what is open."""
        limit = self._frames[-1].end if self._frames else len(self._delimiters) - 1
        following = position + 1
        while following < limit and self._delimiters[following][0] != "\n":
            following = min(limit, self._closing.get(following, following) + 1)
        self._texts[following] = ""
        return following - 1

    def _is_remnant(self, position: int) -> bool:
        """Whether a line that begins with a pipe is an argument or a row, of a template or table that is not open."""
        if _PARAMETER.match(self._texts[position + 1]):
            return True
        following = position + 1
        while self._delimiters[following][:1] not in ("", "\n"):
            if self._delimiters[following] == "||":
                return True
            following += 1
        return False

    def _link(self, position: int, delimiter: str) -> int:
        """Return the position of the last delimiter that the link's start takes away."""
        if delimiter[:2] != "[[":
            self._in_external_link = True
            self._output.append(HOLE)
            return position
        if len(delimiter) > 2:
            target, pipe, label = delimiter[2:-2].partition("|")
            if self._is_dropped(target):
                self._output.append(HOLE)
            else:
                self._output.append(label if pipe else target.strip().removeprefix(":").replace("''", ""))
            return position
        closing = self._closing.get(position)
        dropped = self._is_dropped(self._texts[position + 1])
        if closing is None:
            return self._end_of_line(position) if dropped else position
        if dropped:
            self._output.append(HOLE)
            return closing
        if "[" in self._texts[position + 1] or self._delimiters[position + 1] == "]":  # no name that a page can have
            self._output.append("[[")
            self._literal_ends.add(closing)
            return position
        self._closed_links.add(closing)
        pipe_position = self._pipe.get(position)
        if pipe_position is not None:
            return pipe_position
        self._texts[position + 1] = self._texts[position + 1].lstrip().removeprefix(":")
        return position

    def _is_dropped(self, target: str) -> bool:
        prefix, colon, _ = target.partition(":")
        if not colon:
            return False
        prefix = prefix.strip().lower()
        return prefix in self._dropped_prefixes or prefix in LANGUAGES or bool(_FILE_NAME.match(target.strip()))

    def _bracket(self, position: int, delimiter: str) -> None:
        if position in self._closed_links:
            return
        if self._in_external_link:
            self._in_external_link = False
            self._output.append(delimiter[1:])
        elif delimiter == "]" or position in self._literal_ends or self._are_text("[", position):
            self._output.append(delimiter)

    def _tag(self, tag: str) -> None:
        match = _TAG_NAME.match(tag)
        name = match[1].lower() if match else ""
        if name in LINE_TAGS:
            self._output.append("\n")
        elif name in SPACE_TAGS:
            self._output.append(" ")
        elif name == "table":
            frames = self._frames
            if tag[1] != "/":
                self._start_table()
            elif frames and frames[-1].kind == "table":
                del self._output[frames.pop().start :]
            self._output.append("\n")
        elif name not in INLINE_TAGS:
            self._output.append(tag)

    def _start_table(self) -> None:
        start = len(self._output)
        if self._frames and self._frames[-1].kind == "table" and len(self._frames[-1].bounds) % 2:
            self._frames[-1].bounds.append(start)
        end = self._frames[-1].end if self._frames else len(self._delimiters) - 1
        self._frames.append(_Frame(start, end, "table", bounds=[start]))

    def _end_unclosed_table(self) -> None:
        """Leave out the lines that are rows; the others may be the rest of the page."""
        output, bounds = self._output, self._frames.pop().bounds
        if len(bounds) % 2:
            bounds.append(len(output))
        for start, end in zip(bounds[::2], bounds[1::2], strict=True):
            output[start:end] = ["\n"] + [""] * (end - start - 1) if end > start else []

    def _template(self, position: int) -> int:
        """Return the position of the last delimiter that the template's start takes away."""
        closing = self._closing.get(position)
        name = self._texts[position + 1]
        following = self._delimiters[position + 1][:1]
        if closing is None:
            starts_line = self._delimiters[position - 1][0] == "\n" and not self._texts[position].strip()
            return self._end_of_line(position) if starts_line and following in ("", "\n") else position
        if len(self._delimiters[position]) == 2:
            if "{" in name or "}" in name:  # no name that a page can have
                self._output.append("{{")
                self._literal_ends.add(closing)
                return position
            if self._depth < _MAX_DEPTH and self._open_template(position, name, following, closing):
                return position
            if variable := shown_variable(name, self._title):
                self._output.append(variable)
                return closing
        self._output.append(HOLE)
        return closing

    def _open_template(self, position: int, name: str, following: str, closing: int) -> bool:
        """Open a frame if the template shows something."""
        start = len(self._output)
        if function := shown_function(name):
            self._texts[position + 1] = name.partition(":")[2]
            frame = _Frame(start, closing, "template", function, [start])
        elif following in "|}\n" and (show := shown(name)):
            frame = _Frame(start, closing, "template", show)
        else:
            return False
        self._open(frame)
        return True

    def _open(self, frame: _Frame) -> None:
        self._frames.append(frame)
        self._frame_ends.add(frame.end)
        self._depth += 1

    def _variant(self, position: int) -> int:
        """Return the position of the last delimiter that the variant's start takes away."""
        closing = self._closing.get(position)
        if closing is None or self._is_chemical_name(position, closing):
            self._output.append("-{")
            self._literal_ends.add(closing or -1)
        elif self._depth < _MAX_DEPTH:
            self._open(_Frame(len(self._output), closing, "variant"))
        else:
            return closing
        return position

    def _is_chemical_name(self, position: int, closing: int) -> bool:
        """Whether this is as in 2-{4-propyl}-1-pentanol: few wikis have variants, and these join other characters."""
        before, content, after = self._texts[position], self._texts[position + 1], self._texts[closing + 1]
        return (
            closing == position + 1
            and f"{before[-1:]}{after[:1]}{content}".isascii()
            and (before[-1:].isalnum() and after[:1].isalnum())
        )

    def _end(self, position: int, delimiter: str) -> None:
        """End a template or variant, or show a delimiter that belongs to none where braces are text."""
        output, frames = self._output, self._frames
        if position not in self._frame_ends:
            if position in self._literal_ends or (delimiter == "}}" and self._are_text("{", position)):
                output.append(delimiter)
            return
        while frames[-1].kind == "table":
            self._end_unclosed_table()
        frame = frames.pop()
        self._depth -= 1
        if frame.kind == "variant":
            content = "".join(output[frame.start :])
            text = shown_variant(content) or (HOLE if content.strip() else "")
        else:
            bounds = [*frame.bounds, len(output)]
            arguments = ["".join(output[start:end]) for start, end in pairwise(bounds)]
            text = frame.show(Arguments(arguments)) or HOLE
        del output[frame.start :]
        output.append(text)

    def _are_text(self, opening: str, position: int) -> bool:
        """Whether opening brackets stand shortly before in the line as text: closing ones belong to them."""
        for before in range(position, max(0, position - 10), -1):
            text = self._texts[before]
            if opening in text or _ESCAPED.search(text):
                return True
            if self._delimiters[before - 1][:1] == "\n":
                break
        return False

    def _pipes(self, pipes: str) -> None:
        kind = self._frames[-1].kind if self._frames else ""
        if kind == "template":
            self._frames[-1].bounds += [len(self._output)] * len(pipes)
        elif kind != "table":
            self._output.append(pipes)
