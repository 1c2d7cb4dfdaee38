"""Reading of documents from MediaWiki dumps, JSONL and plain text, as a stream for files of any size."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from xml.etree.ElementTree import ParseError
from xml.parsers import expat

from mwxml import Revision
from mwxml.element_iterator import ElementIterator
from mwxml.errors import MalformedXML
from mwxml.iteration.page import extract_namespace, normalize_title
from mwxml.iteration.site_info import SiteInfo

from unibert.corpus.compression import UNREADABLE, open_text
from unibert.corpus.exclusions import ExclusionMatches, Exclusions, title_key
from unibert.corpus.inputs import InputFile
from unibert.corpus.multistream import StreamRange, stream_range
from unibert.corpus.parquet import read_parquet
from unibert.corpus.redirects import redirect_target
from unibert.corpus.wikitext import ENGLISH_PREFIXES, plain_text
from unibert.errors import TransientError, UserError

_CUT_OFF_XML = {
    expat.errors.codes[message]
    for message in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
    )
}


_MAX_TEXT_CHARACTERS = 1 << 20  # a plain-text file without blank lines must not end up in memory as one document
_MAX_ESCAPED = 12  # characters of XML that stand for one of the text, at most: &#x10FFFF;


@dataclass(frozen=True)
class Document:
    """A text with its origin."""

    id: str
    """The page id for Wikipedia, so that translations under the same id are on the same side of the split."""
    language: str
    title: str
    text: str
    source: str
    """``src`` of a JSONL record, else the file's name."""
    wikitext: str = ""
    """The page's source, for Wikipedia."""
    dropped: str = ""
    """The reason why the reader drops it, in a preview."""


class DocumentReader:
    """Iterates over the documents of a file; ``counts`` then holds the numbers of those read and dropped, by reason.

    Wiki pages are converted to plain text; redirects and pages outside the article namespace are dropped. With
    ``parts`` > 1, only a share of the documents is read and counted, so that several processes can share a large dump:
    a range of a multistream dump, every ``parts``-th page of another. A file that was cut off yields what can be read,
    and adds 1 to ``cut_off_files``. Documents that ``exclusions`` name are dropped; ``matches`` then holds what was
    named.

    ``on_drop`` is called with the reason and each document that is dropped; a page that is has wikitext but no text.

    In a preview, pages that are dropped are yielded as well, with the reason, and those whose id and title ``preview``
    rejects are not converted and have no text.

    Iterating raises UserError for damaged compression, an encoding other than UTF-8, a DTD, broken XML, XML that is not
    a MediaWiki export, or a line that is not a JSON object with a text.
    """

    def __init__(
        self,
        file: InputFile,
        part: int = 0,
        parts: int = 1,
        max_page_characters: int = 1 << 20,
        exclusions: Exclusions | None = None,
        preview: Callable[[str, str], bool] | None = None,
        on_drop: Callable[[str, Document], None] | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.matches = ExclusionMatches()
        self._file, self._part, self._parts = file, part, parts
        self._max_page_characters = max_page_characters
        self._exclusions = exclusions or Exclusions()
        self._preview = preview
        self._on_drop = on_drop
        self._number = 0
        self._range: StreamRange | None = None
        if parts > 1 and file.kind == "wiki":
            self._range = stream_range(file.path, part, parts)

    def __iter__(self) -> Iterator[Document]:
        path = self._file.path
        try:
            readers = {"wiki": self._pages, "jsonl": self._records, "text": self._texts, "parquet": self._rows}
            yield from readers[self._file.kind]()
        except EOFError:
            self._count_cut_off()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                raise UserError(f"{path}: not UTF-8 after document {self._number}; convert it to UTF-8") from error
            self._count_cut_off()
        except UNREADABLE as error:
            # The libraries' own errors, which repeat, have no number.
            kind = TransientError if isinstance(error, OSError) and error.errno is not None else UserError
            raise kind(f"{path}: cannot be read after document {self._number} ({error}); fetch it again") from error

    def _count_cut_off(self) -> None:
        self.counts["cut_off_files"] += self._part == 0 or self._range is not None  # other ranges end before the cut

    def _count_if_in_part(self) -> bool:
        in_part = self._range is not None or self._number % self._parts == self._part
        self._number += 1
        self.counts["read"] += in_part
        return in_part

    def _is_excluded(self, document_id: str, title: str) -> bool:
        if (entry := self._exclusions.match(document_id, title)) is None:
            return False
        self.matches.entries.add(entry)
        return True

    def _drop(self, reason: str, document: Document) -> None:
        self.counts[reason] += 1
        if self._on_drop:
            self._on_drop(reason, document)

    def _default_id(self, number: int) -> str:
        part = f"{self._part}." if self._range and self._part else ""
        return f"{self._file.path.name}:{part}{number}"

    def _pages(self) -> Iterator[Document]:
        _raise_if_not_export(self._file.path)
        namespaces: dict[str, Any] = {}
        prefixes = ENGLISH_PREFIXES
        spans, ending = None, ""
        if self._range:
            spans = [(0, self._range.header), (self._range.start, self._range.end)]
            ending = "" if self._range.is_last else "</mediawiki>"
        with open_text(self._file.path, spans) as stream:
            xml = _ShortenedText(stream, _MAX_ESCAPED * self._max_page_characters, ending)
            root = ElementIterator.from_file(xml)
            try:
                for element in root:
                    if element.tag == "siteinfo":
                        namespaces = {entry.name: entry for entry in SiteInfo.from_element(element).namespaces or ()}
                        unwanted = (name.lower() for name, entry in namespaces.items() if entry.id in (6, 14) and name)
                        prefixes = ENGLISH_PREFIXES.union(unwanted)
                    elif element.tag == "page" and self._count_if_in_part():
                        yield from self._page(element, namespaces, prefixes)
                    root.element.clear()  # else the root keeps an empty element for every page of the dump
                next(root.pointer, None)  # what follows the root would not be read, nor damage in it be seen
            except ParseError as error:
                if error.code not in _CUT_OFF_XML:
                    raise UserError(f"{self._file.path}: broken XML ({error}); fetch it again") from error
                raise EOFError from error

    def _page(
        self, element: ElementIterator, namespaces: dict[str, Any], prefixes: frozenset[str]
    ) -> Iterator[Document]:
        fields: dict[str, str | None] = {}
        content: Any = None
        try:
            for part in element:
                if part.tag == "revision":
                    content = Revision.from_element(part).slots.contents["main"]  # the last one is current
                    element.element.clear()  # else a page keeps an empty element for every revision
                elif part.tag == "redirect":
                    fields["redirect"] = part.attr("title")
                elif part.tag in ("title", "ns", "id"):
                    fields[part.tag] = part.text
            name = fields["title"] or ""
            namespace, title = extract_namespace(name, namespaces)
            if fields.get("ns") is not None:
                namespace, title = int(fields["ns"] or ""), normalize_title(name)
            page_id = str(int(fields["id"] or "")) if "id" in fields else self._default_id(self._number)
            if content is None or not name:
                raise MalformedXML("a page without a title or a revision")
        except UnicodeDecodeError:
            raise
        except (MalformedXML, KeyError, TypeError, ValueError):
            title = fields.get("title") or ""
            page = Document("", self._file.language, title, "", self._file.path.name, dropped="malformed_page")
            self._drop(page.dropped, page)
            if self._preview:
                yield page
            return
        wikitext = content.text or ""
        target = fields.get("redirect") or (redirect_target(wikitext) if namespace == 0 else None)
        reason = ""
        if target or "redirect" in fields:
            reason = "redirect"
            if self._is_excluded(page_id, title) and (key := title_key((target or "").partition("#")[0])):
                self.matches.targets.add(key)
        elif namespace != 0:
            reason = "not_an_article"
        elif self._is_excluded(page_id, title):
            reason = "excluded"
        elif content.model not in (None, "wikitext"):
            reason = "not_wikitext"
        elif len(wikitext) > self._max_page_characters:
            reason = "too_long_page"
        is_converted = not reason and (self._preview is None or self._preview(page_id, title))
        text = plain_text(wikitext, prefixes, title) if is_converted else ""
        page = Document(page_id, self._file.language, title, text, self._file.path.name, wikitext, reason)
        if reason:
            self._drop(reason, page)
        if not reason or self._preview:
            yield page

    def _records(self) -> Iterator[Document]:
        with open_text(self._file.path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip() and self._count_if_in_part():
                    yield from self._included(self._document(line, number))

    def _document(self, line: str, number: int) -> Document:
        try:
            record = json.loads(line)
            text, title = record["text"], record.get("title") or ""
            if not isinstance(text, str) or not isinstance(title, str):
                raise TypeError("text and title must be strings")
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            if _is_cut_off(line, error):
                raise EOFError from error
            where = f"{self._file.path}: line {number}"
            if line.lstrip().startswith("["):
                raise UserError(f"{where} is a JSON array; one object a line is expected") from error
            raise UserError(
                f'{where} is not a JSON object with a "text" ({error!r}); one object a line is expected'
            ) from error
        document_id = "" if record.get("id") is None else str(record["id"]).strip()
        source = record.get("src")
        return Document(
            document_id.encode(errors="backslashreplace").decode() or self._default_id(number),
            self._file.language,
            title,
            text,
            self._file.path.name if source is None else str(source),
        )

    def _rows(self) -> Iterator[Document]:
        for batch in read_parquet(self._file.path):
            for row in batch:
                if not self._count_if_in_part():
                    continue
                document_id = row.get("id") or self._default_id(self._number)
                yield from self._included(
                    Document(document_id, self._file.language, row["title"], row["text"], self._file.path.name)
                )

    def _texts(self) -> Iterator[Document]:
        with open_text(self._file.path) as stream:
            for number, text in enumerate(_paragraph_groups(stream), start=1):
                if self._count_if_in_part():
                    document_id = self._default_id(number)
                    yield from self._included(
                        Document(document_id, self._file.language, "", text, self._file.path.name)
                    )

    def _included(self, document: Document) -> Iterator[Document]:
        if self._is_excluded(document.id, document.title):
            self._drop("excluded", document)
        else:
            yield document


class _ShortenedText:
    """XML whose runs of text lose what exceeds a number of characters, so that no page fills the memory, and that is
    followed by ``ending``."""

    def __init__(self, stream: TextIO, max_characters: int, ending: str) -> None:
        self._stream, self._max_characters, self._ending = stream, max_characters, ending
        self._run = 0  # characters since the last "<"

    def read(self, size: int = -1) -> str:
        while chunk := self._stream.read(size):
            start = chunk.find("<")
            if self._run > self._max_characters:
                text, rest = (chunk, "") if start < 0 else (chunk[:start], chunk[start:])
                chunk = text[: text.find(";", 0, _MAX_ESCAPED) + 1] + rest  # an entity that has begun must end
            last = chunk.rfind("<")
            self._run = self._run + len(chunk) if last < 0 else len(chunk) - last
            if chunk:
                return chunk
        ending, self._ending = self._ending, ""
        return ending


def _is_cut_off(line: str, error: Exception) -> bool:
    """Whether a line that is not JSON is the beginning of an object at the end of a file."""
    if not isinstance(error, json.JSONDecodeError) or error.msg == "Extra data":
        return False
    if line.endswith("\n") or not line.lstrip().startswith("{"):
        return False
    # at the end only a word such as "false" or an escape such as \u0041 is incomplete, or a string, which may be long
    return error.msg.startswith("Unterminated string") or len(line) - error.pos <= len("\\u0041")


def _paragraph_groups(lines: Iterable[str]) -> Iterator[str]:
    """Join lines up to the next blank line, or up to the maximum length of a document."""
    group: list[str] = []
    size = 0
    for line in lines:
        if not line.strip() or size > _MAX_TEXT_CHARACTERS:
            if group:
                yield "".join(group)
            group, size = [], 0
        if line.strip():
            group.append(line)
            size += len(line)
    if group:
        yield "".join(group)


def _raise_if_not_export(path: Path) -> None:
    """Raise UserError if a file has a DTD, which could declare entities, or a root other than ``<mediawiki>``."""
    roots: list[str] = []
    parser = expat.ParserCreate()

    def raise_on_doctype(*_: object) -> None:
        raise UserError(f"{path}: has a document type declaration, which MediaWiki exports never have; it is not read")

    parser.StartDoctypeDeclHandler = raise_on_doctype
    parser.StartElementHandler = lambda name, _: roots.append(name)
    with open_text(path) as stream:
        while not roots:
            chunk = stream.read(1 << 12)
            try:
                parser.Parse(chunk, not chunk)
            except expat.ExpatError as error:
                if not roots:
                    raise UserError(f"{path}: not the XML of a MediaWiki export ({error})") from error
    if roots[0] != "mediawiki":
        raise UserError(f"{path}: not a MediaWiki export: its root is <{roots[0]}>, not <mediawiki>")
