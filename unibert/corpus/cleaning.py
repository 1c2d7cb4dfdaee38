"""The first stage of a build: turns a part of an input file into a spool of clean documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from unibert.corpus.filters import FilterConfig, drop_reason
from unibert.corpus.normalization import normalize
from unibert.corpus.readers import Document, DocumentReader, InputFile
from unibert.corpus.spool import write_spool
from unibert.errors import UserError
from unibert.languages import language

# Every part reads the whole dump and cleans its share of the pages. Cleaning takes some three times as long as reading,
# so more parts than this would do little else than read. Their number depends on the file's size alone, because parts
# decide which of two equal pages comes first.
_BYTES_PER_PART = 512 << 20
_MAX_PARTS = 16


@dataclass(frozen=True, kw_only=True)
class CleaningTask:
    """One part of one input file."""

    file: InputFile
    part: int
    parts: int
    spool: Path
    filters: FilterConfig
    excluded: frozenset[str]
    """Titles and ids to leave out."""
    max_page_characters: int


def num_parts(file: InputFile) -> int:
    """Return the number of tasks that share a file."""
    return min(_MAX_PARTS, 1 + file.path.stat().st_size // _BYTES_PER_PART) if file.kind == "wiki" else 1


def clean(task: CleaningTask) -> Counter[str]:
    """Write the task's spool; return the numbers of documents read, dropped by reason, and of cut-off files."""
    reader = DocumentReader(task.file, task.part, task.parts, task.max_page_characters)
    write_spool(task.spool, _kept(reader, task))
    return reader.counts


def _kept(reader: DocumentReader, task: CleaningTask) -> Iterator[Document]:
    expected = language(task.file.language)
    for document in reader:
        text = normalize(document.text)
        if document.id in task.excluded or document.title in task.excluded:
            reader.counts["excluded"] += 1
        elif reason := drop_reason(text, expected, task.filters):
            reader.counts[reason] += 1
        else:
            yield replace(document, text=text)


def read_exclusions(path: str | None) -> dict[str, frozenset[str]]:
    """Read titles and ids to leave out, by language, from a file of "code<TAB>title" lines.

    Raises:
        UserError: if the file cannot be read or a line has no tab.
    """
    if path is None:
        return {}
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"exclude: {path} cannot be read ({error})") from error
    excluded: dict[str, set[str]] = {}
    for number, line in enumerate(lines, start=1):
        code, tab, title = line.rstrip("\r").partition("\t")
        if tab:
            excluded.setdefault(language(code).code, set()).add(title)
        elif line.strip():
            raise UserError(f"exclude: {path}, line {number}: must be a language code, a tab, and a title or id")
    return {code: frozenset(titles) for code, titles in excluded.items()}
