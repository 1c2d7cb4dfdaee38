"""Documents that a build leaves out because a user names their titles or ids, such as those of evaluation sets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from unibert.errors import UserError
from unibert.languages import language_code

# Characters of direction, which MediaWiki removes from titles
_DIRECTIONS = re.compile("[\u200e\u200f\u202a-\u202e]")
_SPACES = re.compile(r"[\s_]+")


def title_key(title: str) -> str:
    """Return a form in which titles are equal that MediaWiki takes for the same page.

    "_" is a space, the first letter is a capital, the text is NFC and may be percent-encoded.
    """
    title = _SPACES.sub(" ", _DIRECTIONS.sub("", unquote(title)))
    title = unicodedata.normalize("NFC", title).strip()
    return title[:1].upper() + title[1:]


@dataclass(frozen=True)
class Exclusions:
    """Titles and ids of one language."""

    entries: frozenset[str] = frozenset()
    """As they stand in the user's file; each may be a title or an id."""

    @cached_property
    def _titles(self) -> dict[str, str]:
        return {title_key(entry): entry for entry in sorted(self.entries)}

    def match(self, document_id: str, title: str) -> str | None:
        """Return the entry that names the document, None if none does."""
        if document_id in self.entries:
            return document_id
        return self._titles.get(title_key(title)) if title and self.entries else None

    def unmatched(self, matched: Set[str]) -> list[str]:
        """Return the sorted entries that are not ``matched``, nor another spelling of one that is."""
        titles = {title_key(entry) for entry in matched}
        return sorted(entry for entry in self.entries - matched if title_key(entry) not in titles)


@dataclass
class ExclusionMatches:
    """What the exclusions of a language matched."""

    entries: set[str] = field(default_factory=set)
    """Entries that name a document or a redirect."""
    targets: set[str] = field(default_factory=set)
    """`title_key` of the titles to which excluded redirects lead: excluded as well, in whichever file they are."""

    def update(self, other: ExclusionMatches) -> None:
        """Add the matches of another part of the language."""
        self.entries |= other.entries
        self.targets |= other.targets


def read_exclusions(path: str | None) -> dict[str, Exclusions]:
    """Read titles and ids to leave out, by language, from a file of "code<TAB>title" lines.

    Raises:
        UserError: if the file cannot be read or a line has no tab.
    """
    if path is None:
        return {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"exclude: {path} cannot be read ({error})") from error
    excluded: dict[str, set[str]] = {}
    for number, line in enumerate(lines, start=1):
        code, tab, title = line.partition("\t")
        if not line.strip():
            continue
        if not tab or not title.strip():
            raise UserError(f"exclude: {path}, line {number}: must be a language code, a tab, and a title or id")
        try:
            excluded.setdefault(language_code(code), set()).add(title.strip())
        except UserError as error:
            raise UserError(f"exclude: {path}, line {number}: {error}") from error
    return {code: Exclusions(frozenset(titles)) for code, titles in excluded.items()}
