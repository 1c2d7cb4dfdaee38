"""The results of ``bench scaling`` as printed tables and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unibert.text import plain_table

Row = Mapping[str, Any]

PREDICTED = ("passes", "copies", "update", "exchange")
"""Parts of a predicted step."""


def format_scaling_results(results: Mapping[str, Any]) -> str:
    """Tables of measured and predicted steps, of messages, and of weak and strong scaling."""
    ran = [row for row in results["rows"] if row["status"] == "ran"]
    headers = ("ms of a step", "measured", "lowest", "highest", "predicted", "off by", *PREDICTED, "GiB a rank")
    lines = plain_table([headers, *(_time_cells(row) for row in ran)])
    sent = [cells for row in ran for cells in _message_cells(row)]
    if sent:
        sizes = ("messages of a step", "calls", "MB", "predicted MB", "ms, waiting included")
        lines += ["", *plain_table([sizes, *sent])]
    lines += ["", *_scaling_lines({row["name"]: row for row in ran}, results["config"]["ranks"])]
    lines += [f"{row['name']}: {row['status']}: {row['why']}" for row in results["rows"] if row["status"] != "ran"]
    return "\n".join(lines)


def predicted_seconds(row: Row) -> float:
    """Predicted seconds of a row's step."""
    return float(sum(row["predicted"][part] for part in PREDICTED))


def _time_cells(row: Row) -> Sequence[str]:
    measured = row["seconds_per_step"]
    times = (measured, row["seconds_per_step_min"], row["seconds_per_step_max"])
    cells = [row["name"], *(f"{1000 * seconds:,.0f}" for seconds in times)]
    if "predicted" in row:
        predicted = predicted_seconds(row)
        cells += [f"{1000 * predicted:,.0f}", f"{predicted / measured - 1:+.0%}"]
        cells += [f"{1000 * row['predicted'][part]:,.0f}" for part in PREDICTED]
    else:
        cells += [""] * (2 + len(PREDICTED))
    return [*cells, f"{row['peak_bytes'] / 2**30:.2f}"]


def _message_cells(row: Row) -> Iterator[Sequence[str]]:
    for operation, figures in row.get("communication", {}).items():
        expected = row.get("predicted", {}).get("bytes", {}).get(operation)
        yield (
            f"{row['name']}: {operation}",
            f"{figures['calls']:g}",
            f"{figures['bytes'] / 1e6:,.1f}",
            "" if expected is None else f"{expected / 1e6:,.1f}",
            f"{1000 * figures['seconds']:,.1f}",
        )


def _scaling_lines(rows: Mapping[str, Row], ranks: int) -> Iterator[str]:
    """Weak scaling compares steps with as many tokens on each rank, strong scaling steps with as many in all."""
    for stage in ("zero0", "zero1"):
        together = rows.get(f"{ranks} ranks, {stage}")
        for kind, name in (("weak", f"1 rank, {stage}"), ("strong", f"1 rank, {stage}, {ranks} micro-batches")):
            if together is not None and name in rows:
                speedup = together["tokens_per_second"] / rows[name]["tokens_per_second"]
                yield f"{kind} scaling, {stage}: {speedup:.2f} times as fast on {ranks} ranks ({speedup / ranks:.0%})"


def draw_scaling_results(results: Mapping[str, Any], path: Path) -> None:
    """Write a plot of predicted parts beside measured steps to ``path``, if any step was predicted."""
    from matplotlib.figure import Figure

    from unibert.reports.plots import BLUE, GREEN, INK, ORANGE, PALE, WIDTH, save, style

    rows = [row for row in results["rows"] if "predicted" in row]
    if not rows:
        return
    names = dict(zip(PREDICTED, ("forward and backward", "DeepSpeed's copies", "AdamW", "exchange"), strict=True))
    colours = dict(zip(PREDICTED, (PALE, ORANGE, GREEN, BLUE), strict=True))
    with style():
        figure = Figure(figsize=(WIDTH, 0.27 * len(rows) + 1.4))
        axes = figure.subplots()
        left = [0.0] * len(rows)
        for part in PREDICTED:
            widths = [1000 * max(0.0, row["predicted"][part]) for row in rows]
            axes.barh(range(len(rows)), widths, left=left, height=0.7, color=colours[part], label=names[part])
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for place, row in enumerate(rows):
            ends = [1000 * row["seconds_per_step_min"], 1000 * row["seconds_per_step_max"]]
            axes.plot(ends, [place, place], "-", color=INK, linewidth=0.8)
        measured = [1000 * row["seconds_per_step"] for row in rows]
        axes.plot(measured, range(len(rows)), "o", color=INK, markersize=4, label="measured")
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("ms of a step: predicted parts, median and range measured")
        figure.legend(loc="outside upper left", ncols=5, fontsize=7)
        save(figure, path)
