"""Quality filters: which documents are kept, and why others are dropped."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Literal

from unibert.languages import Language

DropReason = Literal["too_short", "few_letters", "repeated_lines", "foreign_script"]

# Scripts whose characters have Unicode names that begin with another word
_SCRIPT_OF_NAME = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "KATAKANA-HIRAGANA": "Katakana",
    "FEMININE": "Latin",
    "MASCULINE": "Latin",
}
# Number of letters of an alphabet that hold about as much text as one character
_LETTERS_PER_CHARACTER = {"Han": 3, "Hiragana": 2, "Katakana": 2, "Hangul": 2}


@dataclass(kw_only=True)
class FilterConfig:
    """Limits of the quality filters. None counts words, so that scripts without spaces are treated like the others."""

    min_letters: int = 50
    """Drop documents with fewer letters. A Chinese character counts as 3, a Japanese syllable or Korean block as 2."""
    min_letter_share: float = 0.6
    """Drop documents with a lower share of letters (with their marks) among the characters that are not spaces."""
    max_repeated_line_share: float = 0.3
    """Drop documents in which more than this share of the characters is in repeated lines."""
    min_script_share: float = 0.5
    """Drop documents with a lower share of letters in the language's scripts, if they are known."""

    def __post_init__(self) -> None:
        if self.min_letters < 1:
            raise ValueError(f"min_letters: must be at least 1, got {self.min_letters}")
        for key in ("min_letter_share", "max_repeated_line_share", "min_script_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: a share lies between 0 and 1, got {getattr(self, key)}")


def letters_by_script(text: str) -> Counter[str]:
    """Return the number of letters and marks of each script; marks that all scripts use count as "Inherited"."""
    letters: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if script := _script(character):
            letters[script] += count
    return letters


def drop_reason(text: str, letters: Counter[str], language: Language, config: FilterConfig) -> DropReason | None:
    """Return why a document is dropped, or None if it is kept.

    Args:
        text: normalised text, lines separated by "\\n".
        letters: its letters, see `letters_by_script`.
        language: language of the text, whose scripts are expected, any if they are not known.
        config: limits of the filters.
    """
    num_letters = letters.total()
    if sum(count * _LETTERS_PER_CHARACTER.get(script, 1) for script, count in letters.items()) < config.min_letters:
        return "too_short"
    if num_letters < config.min_letter_share * (len(text) - text.count(" ") - text.count("\n")):
        return "few_letters"
    if _repeated_characters(text) > config.max_repeated_line_share * len(text):
        return "repeated_lines"
    if not language.scripts:
        return None
    num_inherited = letters["Inherited"]
    expected = sum(letters[script] for script in language.scripts)
    if expected < config.min_script_share * (num_letters - num_inherited):
        return "foreign_script"
    return None


@cache
def _script(character: str) -> str:
    """Return the script of a letter or mark, "Inherited" for marks of all scripts, "" for other characters."""
    if unicodedata.category(character)[0] not in "LM":
        return ""
    first_word = unicodedata.name(character, "Unknown").split()[0]
    if first_word in ("COMBINING", "MODIFIER", "VARIATION"):
        return "Inherited"
    return _SCRIPT_OF_NAME.get(first_word, first_word.capitalize())


def _repeated_characters(text: str) -> int:
    seen: set[str] = set()
    repeated = 0
    for line in text.split("\n"):
        repeated += len(line) * (line in seen)
        seen.add(line)
    return repeated
