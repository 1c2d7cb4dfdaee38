"""Normalisation of Unicode and spaces, so that equal text has one form when it is counted or compared."""

from __future__ import annotations

import re
import unicodedata

# Controls, surrogates, private use, non-characters, soft hyphen, zero-width space, byte-order mark, directional marks.
# The zero-width joiner and non-joiner stay: Persian and Indic spelling needs them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff0-\uffff"
    "\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\U000f0000-\U0010ffff]"
)


def normalize(text: str) -> str:
    """Return NFC text without invisible characters; single spaces in lines, single "\\n" between, none at the ends."""
    lines = _INVISIBLE.sub("", unicodedata.normalize("NFC", text)).splitlines()
    return "\n".join(filter(None, (" ".join(line.split()) for line in lines)))
