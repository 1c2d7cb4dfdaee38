"""Cleaners of wiki dumps: UniBERT's and WikiExtractor.

Each turns dumps into JSON lines with "id", "title" and "text". None expands templates: UniBERT does not, and dumps of
articles lack those that WikiExtractor would need. It writes the characters of HTML as they are (``--html-safe ""``),
since entities in the text would count as markup.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unibert.bench.availability import require_package
from unibert.bench.corpus.measure import measure_call, measure_command

Row = dict[str, Any]
Dump = tuple[str, str]
"""Path and language of a dump."""


@dataclass(frozen=True)
class Cleaner:
    """One program that cleans dumps.

    ``clean`` writes what it makes of the dumps into a folder, of each the text into ``text_file(folder, number)``, and
    returns the figures of `measure_call`. It imports the program, and raises `NotAvailableError` where it is missing.
    """

    name: str
    side: Literal["ours", "stage", "peer"]
    clean: Callable[[Sequence[Dump], Path], Row]
    processes: int = 1


def text_file(folder: Path, number: int) -> Path:
    """Return the file with the texts of a dump, by its number."""
    return folder / f"{number}.jsonl"


def _unibert(dumps: Sequence[Dump], folder: Path) -> Row:
    from unibert.corpus.inputs import InputFile
    from unibert.corpus.readers import DocumentReader

    def write_texts() -> None:
        for number, (path, language) in enumerate(dumps):
            with text_file(folder, number).open("w", encoding="utf-8") as output:
                for document in DocumentReader(InputFile(Path(path), language, "wiki")):
                    record = {"id": document.id, "title": document.title, "text": document.text}
                    output.write(json.dumps(record) + "\n")

    return measure_call(write_texts)


def _first_stage(dumps: Sequence[Dump], folder: Path) -> Row:
    from unibert.corpus.cleaning import CleaningTask, clean
    from unibert.corpus.config import CorpusConfig
    from unibert.corpus.exclusions import Exclusions
    from unibert.corpus.inputs import InputFile

    config = CorpusConfig(inputs=[path for path, _ in dumps], output=str(folder))

    def write_spools() -> None:
        for number, (path, language) in enumerate(dumps):
            clean(
                CleaningTask(
                    file=InputFile(Path(path), language, "wiki"),
                    part=0,
                    parts=1,
                    spool=folder / f"{number}.spool",
                    filters=config.filters,
                    wrong_language=config.wrong_language,
                    near_duplicates=config.near_duplicates,
                    exclusions=Exclusions(),
                    evaluation=None,
                    document_filter=None,
                    max_page_characters=config.max_page_characters,
                )
            )

    return measure_call(write_spools)


def _wikiextractor(dumps: Sequence[Dump], folder: Path) -> Row:
    require_package("wikiextractor")
    from wikiextractor import WikiExtractor
    from wikiextractor.extract import _DEFAULT_IGNORED_TAG_PATTERNS, Extractor, ignoreTag

    def write_texts() -> None:
        """Do what its command does, in one process: `process_dump`, without queues."""
        for number, (path, _) in enumerate(dumps):
            with (
                WikiExtractor.decode_open(path) as file,
                text_file(folder, number).open("w", encoding="utf-8") as output,
            ):
                namespaces, template_namespace = {"Template"}, "Template"
                for line in file:
                    tag = WikiExtractor.tagRE.search(line)
                    if tag and tag[2] == "namespace":
                        namespaces.add(tag[3])
                        if 'key="10"' in line:
                            template_namespace = tag[3]
                    elif tag and tag[2] == "/siteinfo":
                        break
                WikiExtractor.templateNamespace = template_namespace
                options = {
                    "templatePrefix": f"{template_namespace}:",
                    "knownNamespaces": namespaces,
                    "ignored_tag_patterns": [*_DEFAULT_IGNORED_TAG_PATTERNS, ignoreTag("a")],
                    "to_json": True,
                }
                for page_id, revision, title, page in WikiExtractor.collect_pages(file):
                    Extractor(page_id, revision, "", title, page, **options).extract(output, html_safe=False)

    return measure_call(write_texts)


def _wikiextractor_command(dumps: Sequence[Dump], folder: Path) -> Row:
    require_package("wikiextractor")
    options = ["--json", "--no-templates", "--html-safe", "", "--processes", "1", "--quiet", "--output", "-"]
    rows = []
    for number, (path, _) in enumerate(dumps):
        with text_file(folder, number).open("wb") as output:
            command = [sys.executable, "-m", "wikiextractor.WikiExtractor", *options, path]
            rows.append(measure_command(command, output))
    seconds, cpu_seconds = (sum(row[key] for row in rows) for key in ("seconds", "cpu_seconds"))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": rows[-1]["peak_bytes"]}


CLEANERS = (
    Cleaner("UniBERT", "ours", _unibert),
    Cleaner("UniBERT, all of a build's first stage", "stage", _first_stage),
    Cleaner("WikiExtractor, in one process", "peer", _wikiextractor),
    Cleaner("WikiExtractor --processes 1", "peer", _wikiextractor_command, processes=3),
)
"""All that are measured. The command of WikiExtractor has a process that reads, one that cleans and one that writes."""
