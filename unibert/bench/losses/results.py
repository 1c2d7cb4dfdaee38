"""The results of ``bench kernels`` as a printed table and as results.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unibert.bench.goals import format_goals
from unibert.bench.losses.goals import evaluate_goals
from unibert.bench.result_files import label
from unibert.text import plain_table

Row = Mapping[str, Any]

CASE_COLUMNS = ("loss", "rows", "vocab", "hidden", "dtype", "distribution", "bias", "seed")
COLUMNS = (
    *CASE_COLUMNS,
    "provider",
    "side",
    "setting",
    "option",
    "status",
    "why",
    "forward_ms",
    "forward_ms_min",
    "forward_ms_p20",
    "forward_ms_p80",
    "backward_ms",
    "both_ms",
    "both_ms_min",
    "both_ms_p20",
    "both_ms_p80",
    "repeats",
    "share_of_peak",
    "peak_bytes",
    "workspace_bytes",
    "reference_loss",
    "loss_error",
    "hidden_gradient_error",
    "weight_gradient_error",
    "error_rows",
    "accurate",
)
HEADERS = ("", "forward", "backward", "both", "of peak", "workspace", "loss err", "dHidden", "dWeight")
WRONG = "  WRONG"
"""Mark of a provider whose errors rounding does not explain."""


def format_rows(results: Mapping[str, Any]) -> str:
    """One table for each case: milliseconds, share of the matmul peak, memory besides inputs and gradients, errors."""
    sections: list[str] = []
    cases: dict[tuple[Any, ...], list[Row]] = {}
    for row in results["rows"]:
        cases.setdefault(tuple(row[key] for key in CASE_COLUMNS), []).append(row)
    for rows in cases.values():
        first = rows[0]
        vocab = "" if first["loss"] == "adversary" else f", V {first['vocab']:,}"
        bias = ", bias" if first["bias"] else ""
        title = f"{first['loss']}: N {first['rows']:,}{vocab}, H {first['hidden']}, {first['dtype']}"
        ran = [row for row in rows if row["status"] == "ran"]
        lines = plain_table([HEADERS, *(_cells(row) for row in ran)])
        marks = ["", *("" if row["accurate"] else WRONG for row in ran)]
        lines = [line + mark for line, mark in zip(lines, marks, strict=True)]
        missing = [f"{row['provider']}: {row['status']}: {row['why']}" for row in rows if row["status"] != "ran"]
        sections.append("\n".join([f"{title}, {first['distribution']}{bias}", *lines, *missing]))
    return "\n\n".join(sections) + "\n"


def show_results(results: Mapping[str, Any], folder: Path, *, draw: bool = True) -> None:
    """Print the table and the goals; draw results.png if ``draw`` is true and matplotlib is installed."""
    print(format_rows(results))
    print(format_goals(evaluate_goals(results)))
    reason = _draw(results, folder) if draw else ""
    print(f"results  {folder}{f' ({reason})' if reason else ''}")


def _draw(results: Mapping[str, Any], folder: Path) -> str:
    """Draw results.png.

    Returns:
        an empty string, or the reason why there is no plot.
    """
    try:
        from unibert.bench.losses import plots
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        return f"no plot: {package} is not installed"
    return plots.draw(results["rows"], folder / "results.png")


def _cells(row: Row) -> Sequence[str]:
    return (
        label(row),
        *(f"{row[key]:,.2f}" for key in ("forward_ms", "backward_ms", "both_ms")),
        f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else "",
        f"{row['workspace_bytes'] / 2**20:,.0f} MiB" if "workspace_bytes" in row else "",
        *(f"{row[key]:.1e}" for key in ("loss_error", "hidden_gradient_error", "weight_gradient_error")),
    )
