"""Reading of documents from MediaWiki dumps, JSONL and plain text, as a stream for files of any size."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import ParseError
from xml.parsers import expat

from mwxml import Page
from mwxml.element_iterator import ElementIterator
from mwxml.errors import MalformedXML
from mwxml.iteration.site_info import SiteInfo

from unibert.corpus.compression import COMPRESSIONS, UNREADABLE, open_text
from unibert.corpus.wikitext import ENGLISH_PREFIXES, plain_text
from unibert.errors import UserError
from unibert.languages import LANGUAGES, language

Kind = Literal["wiki", "jsonl", "text"]

# Parts of a large Wikipedia are named enwiki-20230501-pages-articles1.xml-p1p41242.bz2
_KINDS: dict[str, Kind] = {r"\.xml(-p\d+p\d+)?": "wiki", r"\.jsonl": "jsonl", r"\.txt": "text"}
_COMPRESSION = "(" + "|".join(re.escape(ending) for ending in COMPRESSIONS) + ")?"
_CUT_OFF_XML = {
    expat.errors.codes[message]
    for message in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
    )
}


_MAX_TEXT_CHARACTERS = 1 << 20  # a plain-text file without blank lines must not end up in memory as one document
_REDIRECT = re.compile(r"\s*#\w+\s*:?\s*\[\[")


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


@dataclass(frozen=True)
class InputFile:
    """A file of documents in one language."""

    path: Path
    language: str
    kind: Kind


def find_inputs(inputs: Iterable[str]) -> list[InputFile]:
    """Find the files of inputs: files, folders of files, or ``en=PATH`` for names that do not give the language.

    The language is the part of the name before the first "." or "-", without a final "wiki":
    ``enwiki-20230501-pages-articles.xml.bz2``, ``af.jsonl.xz``. Each file is returned once, in order of path.

    Raises:
        UserError: if a path does not exist, a file is of unknown kind or language, or a folder has no documents.
    """
    found: set[InputFile] = set()
    for given in inputs:
        code, has_code, name = given.partition("=")
        explicit = has_code and not Path(given).exists()
        path, forced = (Path(name), language(code).code) if explicit else (Path(given), None)
        if path.is_dir():
            named = [file for file in path.iterdir() if file.is_file() and _kind(file)]
            files = [file for file in named if forced or _language_of(file)]
            if not files:
                raise UserError(f"{path}: no file of documents in this folder, such as enwiki.xml.bz2 or en.jsonl.xz")
        elif path.is_file():
            files = [path]
        else:
            raise UserError(f"{path}: no such file or folder")
        for file in files:
            if (kind := _kind(file)) is None:
                compressions = ", ".join(COMPRESSIONS)
                raise UserError(
                    f"{file}: unknown kind of file; names must end in .xml, .jsonl or .txt, then {compressions} or "
                    "nothing"
                )
            if (code := forced or _language_of(file)) == "":
                raise UserError(f"{file}: the name does not begin with a language code; give it as <code>={file}")
            found.add(InputFile(file, code, kind))
    return sorted(found, key=lambda entry: (entry.path, entry.language))


def _kind(path: Path) -> Kind | None:
    matches = (kind for pattern, kind in _KINDS.items() if re.search(pattern + _COMPRESSION + "$", path.name))
    return next(matches, None)


def _language_of(path: Path) -> str:
    code = re.split(r"[.-]", path.name)[0].removesuffix("wiki")
    return code if code in LANGUAGES else ""


class DocumentReader:
    """Iterates over the documents of a file; ``counts`` then holds the numbers of those read and dropped, by reason.

    Wiki pages are converted to plain text; redirects and pages outside the article namespace are dropped. With
    ``parts`` > 1, only every ``parts``-th document is read and counted, so that several processes can share a large
    dump. A file that was cut off yields what can be read, and adds 1 to ``cut_off_files``.

    Iterating raises UserError for damaged compression, an encoding other than UTF-8, a DTD, broken XML, XML that is not
    a MediaWiki export, or a line that is not a JSON object with a text.
    """

    def __init__(self, file: InputFile, part: int = 0, parts: int = 1, max_page_characters: int = 1 << 20) -> None:
        self.counts: Counter[str] = Counter()
        self._file, self._part, self._parts = file, part, parts
        self._max_page_characters = max_page_characters
        self._number = 0

    def __iter__(self) -> Iterator[Document]:
        path = self._file.path
        try:
            yield from {"wiki": self._pages, "jsonl": self._records, "text": self._texts}[self._file.kind]()
        except EOFError:
            self._count_cut_off()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                raise UserError(f"{path}: not UTF-8 after document {self._number}; convert it to UTF-8") from error
            self._count_cut_off()
        except UNREADABLE as error:
            place = f"after document {self._number}"
            raise UserError(f"{path}: cannot be read {place} ({error}); fetch it again") from error

    def _count_cut_off(self) -> None:
        self.counts["cut_off_files"] += self._part == 0

    def _count_if_in_part(self) -> bool:
        in_part = self._number % self._parts == self._part
        self._number += 1
        self.counts["read"] += in_part
        return in_part

    def _pages(self) -> Iterator[Document]:
        _raise_if_not_export(self._file.path)
        namespaces: dict[str, Any] = {}
        prefixes = ENGLISH_PREFIXES
        with open_text(self._file.path) as stream:
            root = ElementIterator.from_file(stream)
            try:
                for element in root:
                    if element.tag == "siteinfo":
                        namespaces = {entry.name: entry for entry in SiteInfo.from_element(element).namespaces or ()}
                        unwanted = (name.lower() for name, entry in namespaces.items() if entry.id in (6, 14) and name)
                        prefixes = ENGLISH_PREFIXES.union(unwanted)
                    elif element.tag == "page" and self._count_if_in_part():
                        yield from self._page(element, namespaces, prefixes)
                    root.element.clear()  # else the root keeps an empty element for every page of the dump
            except ParseError as error:
                if error.code not in _CUT_OFF_XML:
                    raise UserError(f"{self._file.path}: broken XML ({error}); fetch it again") from error
                raise EOFError from error

    def _page(
        self, element: ElementIterator, namespaces: dict[str, Any], prefixes: frozenset[str]
    ) -> Iterator[Document]:
        try:
            page = Page.from_element(element, namespaces)
            if page.redirect or page.namespace != 0:
                self.counts["redirect" if page.redirect else "not_an_article"] += 1
                return
            *_, content = (revision.slots.contents["main"] for revision in page)  # the last one is current
        except UnicodeDecodeError:
            raise
        except (MalformedXML, KeyError, TypeError, ValueError):
            self.counts["malformed_page"] += 1
            return
        wikitext = content.text or ""
        if _REDIRECT.match(wikitext):
            self.counts["redirect"] += 1
        elif content.model not in (None, "wikitext"):
            self.counts["not_wikitext"] += 1
        elif len(wikitext) > self._max_page_characters:
            self.counts["too_long_page"] += 1
        else:
            text = plain_text(wikitext, prefixes, page.title)
            yield Document(str(page.id), self._file.language, page.title, text, self._file.path.name)

    def _records(self) -> Iterator[Document]:
        name = self._file.path.name
        with open_text(self._file.path) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip() or not self._count_if_in_part():
                    continue
                try:
                    record = json.loads(line)
                    text, title = record["text"], record.get("title", "")
                    if not isinstance(text, str) or not isinstance(title, str):
                        raise TypeError("text and title must be strings")
                except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
                    if not line.endswith("\n"):
                        raise EOFError from error
                    raise UserError(
                        f'{self._file.path}: line {number} is not a JSON object with a "text" ({error!r})'
                    ) from error
                yield Document(
                    str(record.get("id", f"{name}:{number}")).encode(errors="backslashreplace").decode(),
                    self._file.language,
                    title,
                    text,
                    str(record.get("src", name)),
                )

    def _texts(self) -> Iterator[Document]:
        name = self._file.path.name
        with open_text(self._file.path) as stream:
            for number, text in enumerate(_paragraph_groups(stream), start=1):
                if self._count_if_in_part():
                    yield Document(f"{name}:{number}", self._file.language, "", text, name)


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
