"""``-{…}-``: text in several variants of a language, as MediaWiki's ConverterRule reads it."""

from __future__ import annotations

import re

_FLAGS = re.compile(r"\s*([A-Za-z\-]*(?:\s*;\s*[A-Za-z\-]*)*)\s*\|")
_HIDING_FLAGS = frozenset("HT-DN")
_FLAGS_OF_RULES = frozenset("AS")
_VARIANT = r"(?:zh|gan|wuu|sr|sh|kk|ku|tg|uz|iu|crh|shi|ban|mni|tly|hans|hant)(?:-[a-z]{2,})*"
_RULE_START = re.compile(rf"(?:^|;)\s*(?:[^;:]*=>\s*)?{_VARIANT}\s*:")
_LAST_SEMICOLON = re.compile(r";\s*$")


def shown_variant(content: str) -> str:
    """Return what is shown of the text between ``-{`` and ``}-``.

    Of several variants it is the first; text without variants, or with the flag R or a variant's code, is shown as it
    is. The flags H, T, -, D and N define something and show nothing or another text.
    """
    flags: set[str] = set()
    if match := _FLAGS.match(content):
        flags = {flag.strip() for flag in match[1].split(";")} - {""}
        content = content[match.end() :]
    if flags & _HIDING_FLAGS and "R" not in flags:
        return ""
    if flags - _FLAGS_OF_RULES:
        return content.strip()
    rules = list(_RULE_START.finditer(content))
    if not rules or content[: rules[0].start()].strip():
        return content
    end = rules[1].start() if len(rules) > 1 else len(content)
    return _LAST_SEMICOLON.sub("", content[rules[0].end() : end]).strip()
