"""Plots of throughput and memory of the stream's providers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from unibert.bench.result_files import label
from unibert.bench.stream.goals import TOKENS_PER_SECOND
from unibert.reports.plots import BLUE, GREY, INK, SKY, VERMILLION, WIDTH, save, style

Row = Mapping[str, Any]

COLOURS = {"fixed": VERMILLION, "stage": SKY, "usual": GREY, "bulk": BLUE}
NAMES = {"fixed": "UniBERT", "stage": "stages of UniBERT", "usual": "peer, row by row", "bulk": "peer, in bulk"}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the figure to ``path`` if any row was measured."""
    drawn = [row for row in rows if row["status"] == "ran"]
    if drawn:
        with style():
            save(throughput_and_memory(drawn), path)


def throughput_and_memory(rows: Sequence[Row]) -> Figure:
    """A bar for each provider: tokens per second, with the goal as a line; below it memory, where it was measured."""
    panels = [("tokens_per_second", "tokens/s (median; tick: fastest round)", list(rows))]
    with_memory = [row for row in rows if "memory_bytes" in row and row["side"] != "stage"]
    if with_memory:
        panels.append(("memory_bytes", "memory (bytes)", with_memory))
    heights = [len(drawn) + 1.5 for _, _, drawn in panels]
    figure = Figure(figsize=(WIDTH, 0.26 * sum(heights) + 0.8))
    grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (key, name, drawn) in zip(grid.flat, panels, strict=True):
        _bars(axes, drawn, key)
        axes.set_xlabel(name)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    grid[0, 0].axvline(TOKENS_PER_SECOND, color=INK, linewidth=1, linestyle=":", label="goal")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=5, fontsize=8, columnspacing=1.2)
    return figure


def _bars(axes: Axes, rows: Sequence[Row], key: str) -> None:
    kinds = ["stage" if row["side"] == "stage" else row["setting"] for row in rows]
    for kind in dict.fromkeys(kinds):
        positions = [position for position, other in enumerate(kinds) if other == kind]
        axes.barh(
            positions,
            [rows[position][key] for position in positions],
            height=0.7,
            color=COLOURS[kind],
            label=NAMES[kind],
        )
    if key == "tokens_per_second":
        axes.plot([row["tokens_per_second_max"] for row in rows], range(len(rows)), "|", color=INK, markersize=8)
    axes.set_yticks(range(len(rows)), [label(row) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
