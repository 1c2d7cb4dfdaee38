"""The results of ``bench stream`` as a printed table and as results.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unibert.bench.goals import format_goals
from unibert.bench.result_files import label
from unibert.bench.stream.goals import evaluate_stream_goals
from unibert.bench.stream.waits import RANKS, STEP_SECONDS
from unibert.text import plain_table

Row = Mapping[str, Any]

COLUMNS = (
    "provider",
    "side",
    "setting",
    "option",
    "processes",
    "status",
    "why",
    "tokens_per_second",
    "tokens_per_second_max",
    "tokens_per_cpu_second",
    "tokens",
    "padding_share",
    "seconds",
    "seconds_min",
    "first_batch_seconds",
    "memory_bytes",
)
HEADERS = ("M tokens/s", "median", "best", "per CPU s", "memory", "padding", "first batch")

WAITS_HEADERS = (
    f"waits at {STEP_SECONDS * 1e3:.0f} ms a step",
    "mean",
    "longest",
    "windows",
    "share",
    f"of {RANKS} ranks",
)


def format_stream_rows(results: Mapping[str, Any]) -> str:
    """The corpus and one line for each provider, with the reason for those that did not run."""
    corpus = results["corpus"]
    title = (
        f"{corpus['tokens']:,} tokens, {corpus['documents']:,} documents "
        f"(median {corpus['median_length']:.0f} tokens), {corpus['languages']} languages, {corpus['shards']} shards"
    )
    lines = plain_table([HEADERS, *(_cells(row) for row in results["rows"] if row["status"] == "ran")])
    missing = [f"{row['provider']}: {row['status']}: {row['why']}" for row in results["rows"] if row["status"] != "ran"]
    resume = results.get("resume")
    resuming = [f"first batches after a resume in mid-run: {resume['seconds']:.2f} s"] if resume else []
    waits = plain_table([WAITS_HEADERS, *map(_wait_cells, results["waits"])]) if "waits" in results else []
    return "\n".join([title, *lines, *missing, *resuming, *waits]) + "\n"


def _cells(row: Row) -> Sequence[str]:
    return (
        label(row),
        *(f"{row[key] / 1e6:.2f}" for key in ("tokens_per_second", "tokens_per_second_max", "tokens_per_cpu_second")),
        f"{row['memory_bytes'] / 2**20:,.0f} MiB" if "memory_bytes" in row and row["side"] != "stage" else "",
        f"{row['padding_share']:.2%}",
        f"{row['first_batch_seconds']:.2f} s" if row["side"] != "stage" else "",
    )


def _wait_cells(row: Row) -> Sequence[str]:
    return (
        f"{row['loader_processes']} loader processes, {'cold' if row['cold'] else 'warm'} cache",
        f"{row['mean_wait'] * 1e3:.2f} ms",
        f"{row['longest_wait'] * 1e3:.1f} ms",
        f"{row['windows']}",
        f"{row['share']:.1%}",
        f"{row['share_of_ranks']:.1%}",
    )


def show_stream_results(results: Mapping[str, Any], folder: Path) -> None:
    """Print the table and the goals; draw results.png if matplotlib is installed."""
    print(format_stream_rows(results))
    print(format_goals(list(evaluate_stream_goals(results))))
    try:
        from unibert.bench.stream.plots import draw
    except ModuleNotFoundError as error:
        missing = str(error.name).split(".")[0]
        print(f"results  {folder} (no plot: {missing} is not installed)")
        return
    draw(results["rows"], folder / "results.png")
    print(f"results  {folder}")
