"""The stream's benchmark as a table to read, with the goals that were set for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unibert.bench.goals import Goal, format_verdict

Row = Mapping[str, Any]

COLUMNS = (
    "contestant", "side", "setting", "option", "processes", "status", "why", "tokens_per_second",
    "tokens_per_second_max", "tokens_per_cpu_second", "tokens", "padding_share", "seconds", "seconds_min",
    "first_batch_seconds", "memory_bytes",
)  # fmt: skip
HEADERS = ("M tokens/s", "median", "best", "per CPU s", "memory", "padding", "first batch")

TOKENS_PER_SECOND = 8e6
SPEEDUP = 4.0
RESUME_SECONDS = 2.0
SHARE_OF_STEP = 0.01


def stream_verdict(results: Mapping[str, Any]) -> Iterator[Goal]:
    """Every goal that the results can decide: tokens per second and core, beside the best peer, resuming, planning."""
    rows = [row for row in results["rows"] if row["status"] == "ran"]
    facts = results["corpus"]
    where = f"{facts['tokens'] / 1e6:.3g} M tokens, {facts['languages']} languages"
    ours = next((row for row in rows if row["contestant"] == "UniBERT"), None)
    if ours is not None:
        rate = ours["tokens_per_second"]
        yield Goal(
            f"≥ {TOKENS_PER_SECOND / 1e6:.0f} M tokens/s per core", where, f"{rate / 1e6:.1f} M",
            rate >= TOKENS_PER_SECOND,
        )  # fmt: skip
        for name, settings in (("row by row", ("usual",)), ("however it reads", ("usual", "bulk"))):
            best = _fastest(row for row in rows if row["setting"] in settings)
            if best is not None:
                ratio = rate / best["tokens_per_second"]
                yield Goal(
                    f"≥ {SPEEDUP:.0f} times the best peer, {name}", where,
                    f"{ratio:.2f} ({label(best)} {best['tokens_per_second'] / 1e6:.1f} M)", ratio >= SPEEDUP,
                )  # fmt: skip
    if (plan := results.get("plan")) is not None:
        simulated = f"{plan['run_tokens'] / 1e9:g} G tokens, {plan['languages']} languages, {plan['shards']:,} shards"
        slowest = max(plan["resume_seconds"].values())
        yield Goal(
            f"resume within {RESUME_SECONDS:.0f} s anywhere in the plan", simulated,
            ", ".join(f"{seconds:.2f} s at {float(at):.0%}" for at, seconds in plan["resume_seconds"].items()),
            slowest <= RESUME_SECONDS,
        )  # fmt: skip
        yield Goal(
            f"planning for {plan['ranks']} ranks < {SHARE_OF_STEP:.0%} of a 100 ms step", simulated,
            f"{plan['share_of_step']:.3%}", plan["share_of_step"] < SHARE_OF_STEP,
        )  # fmt: skip


def _fastest(rows: Iterable[Row]) -> Row | None:
    return max(rows, key=lambda row: row["tokens_per_second"], default=None)


def label(row: Row) -> str:
    """Contestant and chosen option."""
    return f"{row['contestant']} ({row['option']})" if row["option"] else str(row["contestant"])


def format_stream_rows(results: Mapping[str, Any]) -> str:
    """The corpus and one line a contestant; those that did not run with the reason."""
    facts = results["corpus"]
    title = (
        f"{facts['tokens']:,} tokens, {facts['documents']:,} documents (median {facts['median_length']:.0f} tokens), "
        f"{facts['languages']} languages, {facts['shards']} shards"
    )
    cells = [HEADERS, *(_cells(row) for row in results["rows"] if row["status"] == "ran")]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADERS))]
    lines = [
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    missing = [
        f"{row['contestant']}: {row['status']}: {row['why']}" for row in results["rows"] if row["status"] != "ran"
    ]
    resume = results.get("resume")
    after = [f"first batches after a resume in mid-run: {resume['seconds']:.2f} s"] if resume else []
    return "\n".join([title, *lines, *missing, *after]) + "\n"


def _cells(row: Row) -> Sequence[str]:
    return (
        label(row),
        *(f"{row[key] / 1e6:.2f}" for key in ("tokens_per_second", "tokens_per_second_max", "tokens_per_cpu_second")),
        f"{row['memory_bytes'] / 2**20:,.0f} MiB" if "memory_bytes" in row and row["side"] != "stage" else "",
        f"{row['padding_share']:.2%}",
        f"{row['first_batch_seconds']:.2f} s" if row["side"] != "stage" else "",
    )


def show_stream_results(results: Mapping[str, Any], folder: Path) -> None:
    """Print table and verdict, and draw results.png where matplotlib is installed."""
    print(format_stream_rows(results))
    print(format_verdict(list(stream_verdict(results))))
    try:
        from unibert.bench.stream_plots import draw
    except ModuleNotFoundError as error:
        missing = str(error.name).split(".")[0]
        print(f"results  {folder} (no plot: {missing} is not installed)")
        return
    draw(results["rows"], folder / "results.png")
    print(f"results  {folder}")
