"""What is open while a page is rendered: tables, and templates and language variants whose content is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from unibert.corpus.wikitext.isolation import HOLE
from unibert.corpus.wikitext.shown_templates import Arguments, Show
from unibert.corpus.wikitext.variants import shown_variant

_MAX_DEPTH = 40  # MediaWiki's limit for templates in templates; what is nested deeper shows nothing there either


@dataclass
class _Frame:
    kind: Literal["table", "template", "variant"]
    start: int
    """Where its content begins in the output."""
    end: int
    """Position of the closing delimiter; for a table, which may have none, that of what it stands in."""
    bounds: list[int]
    """Where in the output a template's arguments begin; for a table, where its rows begin and end, in turn."""
    show: Show | None = None


@dataclass
class Frames:
    """A stack of what is open, and the output, which what closes takes its content from."""

    last: int
    """Position of the page's last delimiter."""
    output: list[str] = field(default_factory=list)
    _frames: list[_Frame] = field(default_factory=list)
    _ends: set[int] = field(default_factory=set)
    _depth: int = 0

    @property
    def kind(self) -> str:
        """Kind of the innermost frame, empty if there is none."""
        return self._frames[-1].kind if self._frames else ""

    @property
    def end(self) -> int:
        """Position where the innermost template or variant ends, or the page."""
        return self._frames[-1].end if self._frames else self.last

    def open_table(self) -> None:
        """Open a table; its first line is that of the delimiter."""
        self.end_row()
        self._frames.append(_Frame("table", len(self.output), self.end, [len(self.output)]))

    def start_row(self) -> None:
        """Begin a line that is a row of the innermost frame, if that is a table and in no row."""
        if self.kind == "table" and len(self._frames[-1].bounds) % 2 == 0:
            self._frames[-1].bounds.append(len(self.output))

    def end_row(self) -> None:
        """End a line that is a row of the innermost frame, if that is a table and in a row."""
        if self.kind == "table" and len(self._frames[-1].bounds) % 2:
            self._frames[-1].bounds.append(len(self.output))

    def close_table(self) -> bool:
        """Leave out the innermost frame, if that is a table; return whether it was."""
        if self.kind != "table":
            return False
        del self.output[self._frames.pop().start :]
        return True

    def close_unclosed_tables(self) -> None:
        """Leave out the lines that are rows of open tables; the others may be the rest of the page."""
        while self.kind == "table":
            self.end_row()
            bounds = self._frames.pop().bounds
            for start, end in zip(bounds[::2], bounds[1::2], strict=True):
                self.output[start:end] = ["\n", *[""] * (end - start - 1)][: end - start]

    def open_template(self, end: int, show: Show, *, in_argument: bool) -> bool:
        """Open a template; return whether it is not too deep. Its name comes first unless it begins in an argument."""
        start = len(self.output)
        return self._open(_Frame("template", start, end, [start] if in_argument else [], show))

    def open_variant(self, end: int) -> bool:
        """Open a language variant; return whether it is not too deep."""
        return self._open(_Frame("variant", len(self.output), end, []))

    def _open(self, frame: _Frame) -> bool:
        if self._depth >= _MAX_DEPTH:
            return False
        self._frames.append(frame)
        self._ends.add(frame.end)
        self._depth += 1
        return True

    def start_argument(self) -> None:
        """Begin an argument of the innermost frame, a template."""
        self._frames[-1].bounds.append(len(self.output))

    def close(self, position: int) -> bool:
        """Show the template or variant that ends at a position; return whether there is one."""
        if position not in self._ends:
            return False
        self.close_unclosed_tables()
        frame = self._frames.pop()
        self._depth -= 1
        if frame.show is None:
            content = "".join(self.output[frame.start :])
            text = shown_variant(content) or (HOLE if content.strip() else "")
        else:
            bounds = [*frame.bounds, len(self.output)]
            text = frame.show(Arguments(["".join(self.output[start:end]) for start, end in pairwise(bounds)])) or HOLE
        del self.output[frame.start :]
        self.output.append(text)
        return True
