"""Documents of inputs as a build cleans them, those that it drops included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from unibert.corpus.cleaning import cleaned
from unibert.corpus.filters import FilterConfig
from unibert.corpus.inputs import InputFile
from unibert.corpus.readers import Document, DocumentReader
from unibert.corpus.spool import stable_hash


@dataclass(frozen=True)
class PreviewedDocument:
    """A document before and after cleaning."""

    document: Document
    """As it was read: its text is not normalised, and empty if the reader drops it."""
    text: str
    """As it is kept, or as the filter sees that drops it."""
    dropped: str
    """The reason; empty if the document is kept."""

    @property
    def source(self) -> str:
        """Wikitext, or the text of a file that is no dump."""
        return self.document.wikitext or self.document.text


def preview_documents(
    files: Iterable[InputFile],
    filters: FilterConfig,
    max_page_characters: int,
    wanted: Callable[[str, str], bool],
) -> Iterator[PreviewedDocument]:
    """Yield the documents whose id and title are ``wanted``, with the reasons for which a build drops them.

    ``wanted`` is asked about every document, in order, pages maybe twice; those that it rejects are not cleaned. A
    document with the text of an earlier one is a duplicate, as in a build that reads each file in one part.

    Args:
        files: of one language.
        filters: limits of the quality filters.
        max_page_characters: limit of the wikitext of a page.
        wanted: whether to show a document with this id and title.

    Raises:
        UserError: if a file cannot be read.
    """
    seen: set[int] = set()
    for file in files:
        for document in DocumentReader(file, max_page_characters=max_page_characters, preview=wanted):
            if not wanted(document.id, document.title):
                continue
            text, reason = "", document.dropped
            if not reason:
                text, filtered, _ = cleaned(document, filters)
                reason = filtered or ""
            if not reason:
                reason = "duplicate" if stable_hash(text) in seen else ""
                seen.add(stable_hash(text))
            yield PreviewedDocument(document, text, reason)
