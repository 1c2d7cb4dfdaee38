"""Behaviour switches such as ``__NOTOC__``."""

from __future__ import annotations

_ENGLISH = frozenset(
    (
        "notoc", "forcetoc", "toc", "noeditsection", "newsectionlink", "nonewsectionlink", "nogallery", "hiddencat",
        "index", "noindex", "staticredirect", "notitleconvert", "notc", "nocontentconvert", "nocc", "noglobal",
        "disambig", "expectunusedcategory",
    )
)  # fmt: skip
_OF_PROGRAMMERS = frozenset(("FILE", "LINE", "DATE", "TIME", "FUNCTION", "COUNTER", "VA_ARGS", "STDC"))


def is_switch(word: str) -> bool:
    """Return whether ``__WORD__`` is for MediaWiki.

    English ones may be in small letters. Every language has its own words; none has small letters, which tells them
    from Python's ``__init__``, and C's macros have names in English.
    """
    name = word[2:-2]
    if name.lower() in _ENGLISH:
        return True
    return name not in _OF_PROGRAMMERS and not any(map(str.islower, name)) and any(map(str.isalpha, name))
