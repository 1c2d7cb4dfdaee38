"""Delimiters of wikitext and which of them belong together, in one pass without recursion or backtracking."""

from __future__ import annotations

import re

# Every alternative begins with a character of its own, so that the search skips text fast, and none can read a
# character twice except in the rest of its line.
_DELIMITER = re.compile(
    r"""(
    \n(?:
        [ \t:]*\{\|(?!\})              # table
      | [ \t]*\|\}(?!\})              # end of table
      | [ \t]*\|[-+]?                 # row, cell or argument
      | [ \t]*!                       # header cell
      | =[^\n]*=[ \t]*(?=\n|\Z)       # heading
      | -{4,}                         # rule
      | [*\#:;]+[ \t]*                # list item
    )?
  | \[\[(?:
        [^\[\]{}|\n<]+(?:\|[^\[\]{}|\n<']*)?\]\]    # a link with nothing in it
    )?
  | \]\]?
  | \[(?:(?:https?:|ftp:)?//|mailto:)[^\s\[\]<>{}|]*[ \t]*
  | \{\{(?=(?:\{\{\{?)?(?!\{)) | \{\{\{?            # a run of braces, in twos and threes
  | \}\}+(?:-(?!\{))? | \}-(?!\{)
  | -\{(?!\{)
  | \|\|?
  | ''+
  | </?[a-zA-Z][^<>]*>
  | __[^\s_](?:[^\s_]|_(?!_)){1,60}__               # behaviour switch
    )""",
    re.VERBOSE,
)


class Tokens:
    """A page cut at its delimiters: ``texts[i]`` stands before ``delimiters[i]``, an empty delimiter ends the page."""

    def __init__(self, source: str) -> None:
        """Cut a page and pair its templates, links and language variants as MediaWiki's preprocessor does.

        A closing delimiter belongs to the last opening one. A link ends no template and a template no link. A link
        that is not closed before the end of its paragraph, or whose target holds a line break, is none.
        """
        self.texts: list[str] = []
        self.delimiters: list[str] = []
        self.closing: dict[int, int] = {}
        """Position of the closing delimiter for that of the opening one."""
        self.pipe: dict[int, int] = {}
        """Position of the first pipe of a link."""
        self._pair(_DELIMITER.split("\n" + source))

    def _pair(self, pieces: list[str]) -> None:
        texts, delimiters, closing, pipe = self.texts, self.delimiters, self.closing, self.pipe
        opened: list[tuple[str, int]] = []
        after_line_break = False
        for text, delimiter in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            position = len(delimiters)
            first = delimiter[:1]
            if first == "\n":
                if opened and opened[-1][0] == "[[":
                    blank = after_line_break and (not text or text.isspace())
                    while opened and opened[-1][0] == "[[" and (blank or opened[-1][1] not in pipe):
                        opened.pop()
                    if opened and opened[-1][0] == "[[" and "|" in delimiter:
                        pipe.setdefault(opened[-1][1], position)
                after_line_break = delimiter == "\n"
                texts.append(text)
                delimiters.append(delimiter)
                continue
            after_line_break = False
            if first == "}":
                self._close_braces(text, delimiter, opened)
                continue
            texts.append(text)
            delimiters.append(delimiter)
            if first == "{" or delimiter == "[[" or delimiter == "-{":
                opened.append((delimiter, position))
            elif first == "|":
                if opened and opened[-1][0] == "[[":
                    pipe.setdefault(opened[-1][1], position)
            elif delimiter == "]]":
                while opened and opened[-1][0] == "-{":
                    opened.pop()
                if opened and opened[-1][0] == "[[":
                    closing[opened.pop()[1]] = position

    def _close_braces(self, text: str, run: str, opened: list[tuple[str, int]]) -> None:
        """Close templates, arguments and variants with a run of braces, each with a delimiter of its own."""
        braces = run.count("}")
        dash = run[-1] == "-"
        while braces:
            while braces > 1 and opened and opened[-1][0] == "-{":
                if dash:
                    text += "}" * (braces - 1)
                    braces = 1
                else:
                    opened.pop()
            kind, start = opened[-1] if opened else ("", 0)
            if kind == "-{" and dash and braces == 1:
                used = 1
            elif kind[:1] == "{" and braces >= len(kind):
                used = len(kind)
            elif kind == "{{{" and braces == 2:
                used = 2
            else:
                break
            opened.pop()
            self.closing[start] = len(self.delimiters)
            self.texts.append(text)
            self.delimiters.append("}-" if kind == "-{" else "}}")
            text = ""
            braces -= used
            dash = dash and kind != "-{"
        if braces or dash:
            # A single brace is text, a pair is the end of a template that has no start
            rest = ("}" if braces == 1 else "") + ("-" if dash else "")
            self.texts.append(text + rest)
            self.delimiters.append("}}" if braces > 1 else "}")
