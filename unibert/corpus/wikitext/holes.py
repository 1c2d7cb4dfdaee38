"""Holes: places in rendered text where something was left out."""

from __future__ import annotations

import re
import unicodedata

from unibert.corpus.wikitext.isolation import HOLE

# A run of holes with the single spaces around and between them
_RUN = re.compile(f" ?{HOLE}(?: ?{HOLE})* ?")
_IN_BRACKETS = re.compile(f"([(（\\[])[ ,;:،；，、.]*{HOLE}[ ,;:،；，、.{HOLE}]*([)）\\]])")
_AFTER_BRACKET = re.compile(f"([(（])[ ,;:،；，、]*{HOLE}[ ,;:،；，、{HOLE}]*")
# Starts where nothing of the kind stands before, so that it is tried once in a run of separators
_BEFORE_BRACKET = re.compile(f"(?<![ ,;،；，、{HOLE}])[ ,;،；，、]*{HOLE}[ ,;،；，、{HOLE}]*+(?=[)）])")
_BETWEEN_SEPARATORS = re.compile(f"([,;،；，、]) ?{HOLE}[ {HOLE}]*[,;،；，、]")
_IN_QUOTES = re.compile(f'(["“„«「『]) ?{HOLE}[ {HOLE}]*(["”“»」』])')
# Scripts without spaces between words, and Hangul, whose particles follow a word or its footnote directly
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1100-\u11ff\u2e80-\u9fff\ua000-\ua4cf\uac00-\ud7ff"
    "\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_CLOSING_PUNCTUATION = frozenset(",.;:!?)]}،。，、；：！？）؟؛।")
_NEVER_AFTER_SPACE = frozenset(",.)،。，、）।")


def close_holes(line: str) -> str:
    """Return a line, with single spaces, without its holes.

    A hole takes along brackets and quotes with nothing else in them and one of the spaces around it; between words it
    leaves a space. Spaces elsewhere stay.
    """
    if HOLE not in line:
        return line
    line = _IN_QUOTES.sub(HOLE, _IN_BRACKETS.sub(HOLE, line))
    line = _BEFORE_BRACKET.sub("", _AFTER_BRACKET.sub(r"\1", line))
    line = _BETWEEN_SEPARATORS.sub(r"\1", line)
    return _RUN.sub(_space, line)


def _space(run: re.Match[str]) -> str:
    line = run.string
    before = line[run.start() - 1] if run.start() else " "
    after = line[run.end()] if run.end() < len(line) else " "
    space_before, space_after = run[0][0] == " ", run[0][-1] == " "
    if before == " " or after == " ":
        return ""
    if space_before or space_after:
        closes = after in (_NEVER_AFTER_SPACE if space_after else _CLOSING_PUNCTUATION)
        return "" if closes or before in "([（" else " "
    if not (_is_of_word(before) and _is_of_word(after)):
        return ""
    return "" if _UNSPACED.match(before) or _UNSPACED.match(after) else " "


def _is_of_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M"
