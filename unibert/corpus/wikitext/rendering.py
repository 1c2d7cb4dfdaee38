"""Rendering of the tokens of a page as text with holes."""

from __future__ import annotations

import re

from unibert.corpus.wikitext.frames import Frames
from unibert.corpus.wikitext.isolation import HOLE
from unibert.corpus.wikitext.shown_templates import SUPERSCRIPTS, shown, shown_function, shown_variable
from unibert.corpus.wikitext.switches import is_switch
from unibert.corpus.wikitext.tags import INLINE_TAGS, LINE_TAGS, SPACE_TAGS
from unibert.corpus.wikitext.tokens import Tokens
from unibert.languages import is_known

_FILE_NAME = re.compile(
    r"[^:|]+:.+\.(jpe?g|png|svg|gif|tiff?|webp|og[agv]|webm|mp3|wav|pdf|djvu|stl)\s*$", re.IGNORECASE
)
_TAG_NAME = re.compile(r"</?([a-zA-Z]+[1-6]?)(?=[\s/>])")
_ESCAPED = re.compile("&[#l]|\x01")  # an entity that may be a bracket, or text from <nowiki>
_EXPONENT = re.compile("[-−]?[0-9]+")
_PARAMETER = re.compile(r"\s*[\w .-]{1,40}=")


class Renderer:
    """Renders the tokens of a page in one pass, with a stack of open tables, templates and variants."""

    def __init__(self, tokens: Tokens, dropped_prefixes: frozenset[str], title: str) -> None:
        self._texts, self._delimiters = tokens.texts, tokens.delimiters
        self._closing, self._pipe = tokens.closing, tokens.pipe
        self._dropped_prefixes = dropped_prefixes
        self._title = title
        self._frames = Frames(len(tokens.delimiters) - 1)
        self._output = self._frames.output
        self._closed_links: set[int] = set()
        self._literal_ends: set[int] = set()
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
                self._tag(position, delimiter)
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
        self._frames.close_unclosed_tables()
        return "".join(output)

    def _line_start(self, position: int, delimiter: str) -> int:
        """Return the position of the last delimiter that the line's start takes away."""
        output, frames = self._output, self._frames
        self._in_term = self._in_external_link = False
        kind = delimiter.strip(" \t:\n")[:2]
        around = frames.kind
        if kind[:1] == "{":
            frames.open_table()
        elif kind == "|}":
            if not frames.close_table():
                position = self._end_of_line(position)
        elif around == "table" and kind[:1] in ("|", "!"):
            frames.start_row()
        elif kind[:1] == "|":
            if around == "template":
                frames.start_argument()
                return position
            if around == "" and (kind != "|" or self._is_remnant(position)):
                position = self._end_of_line(position)
            elif around or self._texts[position + 1][:1].strip():  # |x| is a number
                output.append("\n|")
                return position
        elif kind == "!":
            output.append("\n!")
            return position
        else:
            frames.end_row()
        output.append("\n")
        self._in_term = kind[:1] == ";"
        return position

    def _end_of_line(self, position: int) -> int:
        """Return the position before the next line, or before the end of what is open."""
        limit = self._frames.end
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
            target, _, label = delimiter[2:-2].partition("|")
            if self._is_dropped(target):
                self._output.append(HOLE)
            else:
                self._output.append(label if label else target.strip().removeprefix(":").replace("''", ""))
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
        return prefix in self._dropped_prefixes or is_known(prefix) or bool(_FILE_NAME.match(target.strip()))

    def _bracket(self, position: int, delimiter: str) -> None:
        if position in self._closed_links:
            return
        if self._in_external_link:
            self._in_external_link = False
            self._output.append(delimiter[1:])
        elif delimiter == "]" or position in self._literal_ends or self._are_text("[", position):
            self._output.append(delimiter)

    def _tag(self, position: int, tag: str) -> None:
        match = _TAG_NAME.match(tag)
        name = match[1].lower() if match else ""
        if name in LINE_TAGS:
            self._output.append("\n")
        elif name in SPACE_TAGS:
            self._output.append(" ")
        elif name == "table":
            if tag[1] != "/":
                self._frames.open_table()
            else:
                self._frames.close_table()
            self._output.append("\n")
        elif name not in INLINE_TAGS:
            self._output.append(tag)
        elif name == "sup" and self._texts[position][-1:].isdigit() and _EXPONENT.fullmatch(self._texts[position + 1]):
            self._texts[position + 1] = self._texts[position + 1].translate(SUPERSCRIPTS)

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
            function = shown_function(name)
            show = function or (shown(name) if following in "|}\n" else None)
            if show and self._frames.open_template(closing, show, in_argument=function is not None):
                if function:
                    self._texts[position + 1] = name.partition(":")[2]
                return position
            if variable := shown_variable(name, self._title):
                self._output.append(variable)
                return closing
        self._output.append(HOLE)
        return closing

    def _variant(self, position: int) -> int:
        """Return the position of the last delimiter that the variant's start takes away."""
        closing = self._closing.get(position)
        if closing is None or self._is_chemical_name(position, closing):
            self._output.append("-{")
            self._literal_ends.add(closing or -1)
        elif not self._frames.open_variant(closing):
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
        if self._frames.close(position):
            return
        if position in self._literal_ends or (delimiter == "}}" and self._are_text("{", position)):
            self._output.append(delimiter)

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
        around = self._frames.kind
        if around == "template":
            for _ in pipes:
                self._frames.start_argument()
        elif around != "table":
            self._output.append(pipes)
