"""The results of ``bench corpus`` as printed tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unibert.bench.corpus.goals import evaluate_corpus_goals
from unibert.bench.goals import format_goals
from unibert.text import plain_table

Row = Mapping[str, Any]

_TIMES = ("MB/s", "per CPU s", "slowest", "fastest")


def format_corpus_results(results: Mapping[str, Any]) -> str:
    """Tables of each part, the reasons for what did not run, and the goals."""
    sections = [
        *_cleaning_tables(results.get("cleaning")),
        *_tokenising_tables(results.get("tokenising"), results.get("text")),
        *_build_tables(results.get("build"), results["inputs"]),
        [format_goals(list(evaluate_corpus_goals(results)))],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections)


def _cleaning_tables(part: Row | None) -> Iterator[list[str]]:
    if part is None:
        return
    rows = [row for row in part["rows"] if row["status"] == "ran"]
    title = f"cleaning: {part['pages']:,} articles, {part['wikitext_bytes'] / 1e6:,.1f} MB of wikitext"
    header = (title, *_TIMES, "peak")
    yield [*plain_table([header, *((row["name"], *_times(row), _peak(row)) for row in rows)]), *_missing(part)]
    compared = [row for row in rows if "quality" in row]
    pages = compared[0]["quality"]["compared_pages"] if compared else 0
    totals = (f"{pages:,} articles of which all have a text", "characters", "prose lost", "left per 10,000", "no text")
    yield plain_table([totals, *((row["name"], *_quality(row["quality"])) for row in compared)])
    languages = sorted(compared[0]["quality"]["languages"]) if compared else []
    names = ("prose lost, left per 10,000", *(row["name"] for row in compared))
    cells = [
        (language, *(_short_quality(row["quality"]["languages"][language]) for row in compared))
        for language in languages
    ]
    yield plain_table([names, *cells])
    worst = [
        f"{row['name']}: " + ", ".join(f"{page['title']} ({page['language']}) {page['lost']:,}" for page in pages)
        for row in compared
        if (pages := row["quality"]["worst"])
    ]
    if worst:
        yield ["pages that lose most, with characters lost", *worst]


def _tokenising_tables(part: Row | None, text: Row | None) -> Iterator[list[str]]:
    if part is None or text is None:
        return
    title = f"tokenising: {text['documents']:,} documents, {text['text_bytes'] / 1e6:,.1f} MB of text"
    rows = [row for row in part["rows"] if row["status"] == "ran"]
    yield [
        *plain_table([(title, *_TIMES), *((f"{row['tokenizer']}: {row['name']}", *_times(row)) for row in rows)]),
        *_missing(part),
    ]


def _build_tables(part: Row | None, inputs: Sequence[Row]) -> Iterator[list[str]]:
    if part is None:
        return
    title = f"build with a given tokenizer: {sum(file['bytes'] for file in inputs) / 1e6:,.1f} MB of files"
    header = (title, "seconds", "min", "max", "CPU s", "efficiency", "peak")
    yield [
        *plain_table([header, *(_build_cells(row) for row in part["rows"] if row["status"] == "ran")]),
        *_missing(part),
        "the same bytes" if part["same_bytes"] else "DIFFERENT BYTES",
    ]


def _missing(part: Row) -> list[str]:
    return [f"{row['name']}: {row['status']}: {row['why']}" for row in part["rows"] if row["status"] != "ran"]


def _times(row: Row) -> Sequence[str]:
    keys = ("mb_per_second", "mb_per_cpu_second", "mb_per_cpu_second_min", "mb_per_cpu_second_max")
    return [f"{row[key]:.2f}" for key in keys]


def _peak(row: Row) -> str:
    return f"{row['peak_bytes'] / 1e6:,.0f} MB" if "peak_bytes" in row else ""


def _quality(quality: Row) -> Sequence[str]:
    return (
        f"{quality['characters']:,}",
        f"{quality['lost_share']:.3%}",
        f"{quality['leftovers_per_10k']:.2f}",
        f"{quality['missing_pages']:,} of {quality['pages']:,}",
    )


def _short_quality(quality: Row) -> str:
    return f"{quality['lost_share']:.3%}  {quality['leftovers_per_10k']:5.2f}"


def _build_cells(row: Row) -> Sequence[str]:
    return (
        row["name"],
        *(f"{row[key]:.1f}" for key in ("seconds", "seconds_min", "seconds_max", "cpu_seconds")),
        f"{row['efficiency']:.1%}" if "efficiency" in row else "",
        _peak(row),
    )
