"""HTML elements and extension tags, in lower case."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DROPPED_EXTENSIONS = _words(
    "ref references gallery imagemap math chem ce score timeline graph mapframe maplink hiero syntaxhighlight source "
    "pre templatedata templatestyles categorytree inputbox includeonly"
)
"""Elements that are left out with their content, in which there is no other markup."""
LINE_TAGS = _words(
    "div p blockquote center ul ol li dl dt dd tr caption h1 h2 h3 h4 h5 h6 hr poem section figure figcaption"
)
"""Tags that stand between lines."""
SPACE_TAGS = _words("br td th")
"""Tags that stand between words."""
INLINE_TAGS = DROPPED_EXTENSIONS | _words(
    "b i u s em strong small big sub sup span font code kbd samp var tt del ins strike abbr cite dfn mark q ruby rb rt "
    "rp rtc bdi bdo data time wbr nowiki noinclude onlyinclude thead tbody tfoot col colgroup translate tvar languages "
    "a img link meta indicator"
)
"""Tags that leave no trace; those of extensions only if they are not closed."""
