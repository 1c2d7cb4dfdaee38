"""``unibert corpus show``: documents of an input before and after cleaning, and documents of a corpus."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from unibert.corpus.config import CorpusShowConfig
from unibert.corpus.exclusions import title_key
from unibert.corpus.inputs import InputFile, find_inputs
from unibert.corpus.manifest import MANIFEST_NAME, Manifest, Split
from unibert.corpus.preview import PreviewedDocument, preview_documents
from unibert.corpus.prose_loss import kept_percentage
from unibert.corpus.text_tokenizer import TOKENIZER_NAME
from unibert.corpus.wikitext.visible_prose import kept_share, lost_prose
from unibert.errors import UserError
from unibert.languages import language_code, nearest_code
from unibert.reports.side_by_side import side_by_side
from unibert.stream.config import StreamConfig
from unibert.stream.reader import read_blocks
from unibert.stream.source import ShardSource

_SHOWN_CHARACTERS = 2000  # of a document that was not named
_MIN_COLUMNS = 100  # of a terminal, for two texts side by side
_COMPARED_TITLES = 4096
# What a terminal would obey instead of showing it
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class _Screen:
    columns: int
    """0 if the output is no terminal."""
    has_colours: bool

    def heading(self, text: str) -> str:
        return self._painted(text, "1")

    def lost(self, text: str) -> str:
        return self._painted(f"[-{text}-]", "31")

    def _painted(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self.has_colours else text


def show_documents(config: CorpusShowConfig) -> None:
    """Print documents of an input or a corpus.

    Raises:
        UserError: if the source cannot be read, or has no such language, title or reason.
    """
    is_terminal = sys.stdout.isatty()
    screen = _Screen(
        shutil.get_terminal_size().columns if is_terminal else 0, is_terminal and not os.environ.get("NO_COLOR")
    )
    try:
        is_corpus = (Path(config.source) / MANIFEST_NAME).is_file()
        for line in (_corpus_lines if is_corpus else _input_lines)(config, screen):
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough; Python would complain once more when it closes the output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Titles:
    """The title or id that is asked for, and those most like it of the documents that were passed over."""

    def __init__(self, title: str | None) -> None:
        self._title = title
        self._key = title_key(title or "")
        self._nearest: list[str] = []
        self._others: set[str] = set()

    def is_wanted(self, document_id: str, title: str) -> bool:
        if self._title is None or self._title == document_id or (title and title_key(title) == self._key):
            return True
        self._others.add(title or document_id)
        if len(self._others) >= _COMPARED_TITLES:
            self._compare()
        return False

    def hint(self) -> str:
        """Return a clause that asks for the most similar titles."""
        self._compare()
        return f"; did you mean {' or '.join(map(repr, self._nearest))}?" if self._nearest else ""

    def _compare(self) -> None:
        # Sorted, so that ties do not depend on the order of a set
        self._nearest = get_close_matches(self._title or "", sorted({*self._nearest, *self._others}), n=3)
        self._others.clear()


# ---- inputs ------------------------------------------------------------------------------------------------------


def _input_lines(config: CorpusShowConfig, screen: _Screen) -> Iterator[str]:
    titles = _Titles(config.title)
    reasons: Counter[str] = Counter()
    num_shown = 0
    for files in _files_by_language(config):
        shown: Counter[str] = Counter()
        for preview in preview_documents(files, config.filters, config.max_page_characters, titles.is_wanted):
            reasons[preview.dropped] += 1
            if not _is_asked_for(preview, config) or shown[preview.dropped] >= config.number:
                continue
            shown[preview.dropped] += 1
            num_shown += 1
            yield from _document_lines(preview, config, screen)
            yield ""
            if config.title is not None:
                return
            if config.dropped != "all" and shown[preview.dropped] >= config.number:
                break
    if config.title is not None:
        raise UserError(f"title: {config.source} has no document {config.title!r}{titles.hint()}")
    del reasons[""]
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items())) or "none"
    if not num_shown and config.dropped:
        raise UserError(f"dropped: no document is dropped for {config.dropped!r}; dropped are: {dropped}")
    if not num_shown:
        raise UserError(f"{config.source}: no document is kept; dropped are: {dropped}; --dropped all shows some")
    if not config.dropped and reasons:
        yield f"Dropped among these: {dropped}; --dropped REASON shows them"


def _files_by_language(config: CorpusShowConfig) -> list[list[InputFile]]:
    files: dict[str, list[InputFile]] = defaultdict(list)
    for file in find_inputs([config.source]):
        files[file.language].append(file)
    return [files[code] for code in _languages(config, list(files))]


def _languages(config: CorpusShowConfig, found: list[str]) -> list[str]:
    if config.language is None:
        return found
    if (code := language_code(config.language)) not in found:
        raise UserError(
            f"language: {config.source} has no document in {code}; it has {', '.join(sorted(found))}; did you mean "
            f"{nearest_code(code, sorted(found))!r}?"
        )
    return [code]


def _is_asked_for(preview: PreviewedDocument, config: CorpusShowConfig) -> bool:
    if config.title is not None:
        return True
    if config.dropped == "all":
        return bool(preview.dropped)
    return preview.dropped == (config.dropped or "")


def _document_lines(preview: PreviewedDocument, config: CorpusShowConfig, screen: _Screen) -> Iterator[str]:
    document = preview.document
    origin = f"id {document.id}, {document.language}, {document.source}"
    yield screen.heading(_printable(f"{document.title} ({origin})" if document.title else origin))
    facts = [
        f"dropped: {preview.dropped}" if preview.dropped else "kept",
        f"{len(preview.source):,} characters, {len(preview.text):,} after cleaning",
    ]
    if document.wikitext and not document.dropped:
        visible, kept = kept_share(document.wikitext, document.text)
        facts.append(f"visible prose kept: {kept_percentage(visible, kept) or 'there is none'}")
    yield "; ".join(facts)
    yield ""
    if config.diff:
        yield from _loss_lines(preview, screen)
        return
    limit = None if config.title is not None else _SHOWN_CHARACTERS
    source, text = _shortened(preview.source, limit), _shortened(preview.text, limit)
    if screen.columns >= _MIN_COLUMNS:
        yield from side_by_side(source, text, screen.columns)
        return
    yield screen.heading("source")
    yield from source
    yield ""
    yield screen.heading("text")
    yield from text


def _loss_lines(preview: PreviewedDocument, screen: _Screen) -> Iterator[str]:
    document = preview.document
    if not document.wikitext or document.dropped:
        yield "Not an article of a dump: its visible prose is not measured."
        return
    lines = lost_prose(document.wikitext, document.text)
    for line in lines:
        yield "".join(screen.lost(_printable(piece)) if is_lost else _printable(piece) for piece, is_lost in line)
    if not lines:
        yield "Nothing of the visible prose is lost."


def _shortened(text: str, limit: int | None) -> list[str]:
    """Return the printable lines of a text, of which only the beginning is shown if it is longer than ``limit``."""
    if limit is None or len(text) <= limit:
        return _printable(text).split("\n")
    return [*_printable(text[:limit]).split("\n"), f"… {len(text) - limit:,} more characters; --title shows all"]


def _printable(text: str) -> str:
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n").replace("\t", " "))


# ---- a corpus ----------------------------------------------------------------------------------------------------


def _corpus_lines(config: CorpusShowConfig, screen: _Screen) -> Iterator[str]:
    for option in ("dropped", "diff"):
        if getattr(config, option):
            raise UserError(f"{option}: {config.source} is a corpus, which holds what was kept; name the input instead")
    manifest = Manifest.load(config.source)
    tokenizer = Tokenizer.from_file(str(Path(config.source) / "tokenizer" / TOKENIZER_NAME))
    titles = _Titles(config.title)
    has_breaks = True
    for code in _languages(config, manifest.languages):
        for split in get_args(Split):
            for document_id, tokens, lines in islice(_documents(config, manifest, code, split, titles), config.number):
                yield screen.heading(_printable(f"id {document_id}, {code}, {split}"))
                yield f"{len(tokens):,} tokens"
                yield ""
                has_breaks = has_breaks and lines is not None
                text = _decoded(tokenizer, tokens, lines)
                yield from _shortened(text, None if config.title is not None else _SHOWN_CHARACTERS)
                yield ""
                if config.title is not None:
                    yield from _note(config, has_breaks)
                    return
    if config.title is not None:
        raise UserError(
            f"title: {config.source} has no document with the id {config.title!r}; a corpus holds ids, no titles"
            f"{titles.hint()}"
        )
    yield from _note(config, has_breaks)


def _note(config: CorpusShowConfig, has_breaks: bool) -> Iterator[str]:
    if not has_breaks:
        yield f"{config.source} was built without line breaks; a document stands in one line."


def _documents(
    config: CorpusShowConfig, manifest: Manifest, code: str, split: Split, titles: _Titles
) -> Iterator[tuple[str, npt.NDArray[np.unsignedinteger], npt.NDArray[np.uint32] | None]]:
    """Yield id, tokens and tokens of each line of the documents that are asked for, in the order of the shards."""
    source = ShardSource(Path(config.source), StreamConfig())
    for shard in manifest.shards_of(code, split):
        for block in read_blocks(source, shard, manifest.vocab_size, with_lines=True):
            unknown: list[npt.NDArray[np.uint32] | None] = [None] * len(block.ids)
            lines = block.lines or unknown
            for document_id, tokens, tokens_of_lines in zip(block.ids, block.documents(), lines, strict=True):
                if titles.is_wanted(document_id, ""):
                    yield document_id, tokens, tokens_of_lines


def _decoded(
    tokenizer: Tokenizer, tokens: npt.NDArray[np.unsignedinteger], lines: npt.NDArray[np.uint32] | None
) -> str:
    pieces = [tokens] if lines is None else np.split(tokens, np.cumsum(lines, dtype=np.int64)[:-1])
    return "\n".join(tokenizer.decode(piece.tolist()).strip() for piece in pieces)
