"""Plots of time and memory of the MLM head's providers over V and H."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullFormatter, NullLocator

from unibert.reports.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION, WIDTH, save, style

Row = Mapping[str, Any]

UNIBERT_COLOURS = {"UniBERT exp-store": VERMILLION, "UniBERT recompute": BLUE, "UniBERT chunked": GREEN}
PEER_COLOURS = (INK, ORANGE, PURPLE, SKY, GREY, "#8c6d1f", "#7a4b2a", "#b58900", "#2f4f4f", "#9c9c9c")
PEER_MARKERS = "sD^v<>PX*h"
AXES = {"vocab": "vocabulary size V", "hidden": "hidden size H"}


def draw(rows: Sequence[Row], path: Path) -> str:
    """Write the figure to ``path``.

    Returns:
        an empty string, or the reason why there is no figure.
    """
    drawn = [row for row in rows if row["loss"] == "mlm" and row["status"] == "ran" and not row["bias"]]
    if not drawn:
        return "no plot: no row of the MLM head was measured"
    with style():
        save(time_and_memory(drawn), path)
    return ""


def time_and_memory(rows: Sequence[Row]) -> Figure:
    """Panels of time and workspace (rows) over V and over H (columns), where there are several values of it."""
    sweeps = {axis: _sweep(rows, axis) for axis in AXES}
    several = {axis: sweep for axis, sweep in sweeps.items() if len({row[axis] for row in sweep}) > 1}
    sweeps = several or {"vocab": sweeps["vocab"]}
    has_memory = any("workspace_bytes" in row for row in rows)
    quantities = [("both_ms", "forward + backward (ms)"), ("workspace_bytes", "workspace (bytes)")][: 1 + has_memory]
    providers = list(dict.fromkeys(row["provider"] for sweep in sweeps.values() for row in sweep))
    styles = _styles(providers)
    figure = Figure(figsize=(WIDTH, 2.7 * len(quantities) + 0.25 * len(providers) / 2 + 0.3))
    grid = figure.subplots(len(quantities), len(sweeps), squeeze=False, sharey="row")
    for column, (axis, sweep) in enumerate(sweeps.items()):
        for line, (key, name) in enumerate(quantities):
            axes = grid[line, column]
            for provider in providers:
                points = sorted(
                    (row[axis], row[key]) for row in sweep if row["provider"] == provider and row.get(key, 0) > 0
                )
                if points:
                    axes.plot(*zip(*points, strict=True), label=provider, **styles[provider])
            _logarithmic(axes, sorted({row[axis] for row in sweep}), AXES[axis])
            axes.set_title(_fixed(sweep[0], axis))
            if column == 0:
                axes.set_ylabel(name)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
            axes.yaxis.set_minor_formatter(NullFormatter())
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=2, fontsize=8)
    return figure


def _sweep(rows: Sequence[Row], axis: str) -> list[Row]:
    """Rows that differ only in ``axis``, at the other settings with the most values of it."""
    others = [key for key in ("vocab", "hidden", "rows", "dtype", "distribution") if key != axis]
    settings = {(tuple(row[key] for key in others), row[axis]) for row in rows}
    ((chosen, _),) = Counter(setting for setting, _ in sorted(settings, key=str)).most_common(1)
    return [row for row in rows if tuple(row[key] for key in others) == chosen]


def _fixed(row: Row, axis: str) -> str:
    fixed = f"H = {row['hidden']}" if axis == "vocab" else f"V = {row['vocab'] // 1000}k"
    return f"{fixed}, N = {row['rows']:,}, {row['dtype']}"


def _styles(providers: Sequence[str]) -> dict[str, dict[str, Any]]:
    peers = [provider for provider in providers if provider not in UNIBERT_COLOURS]
    styles: dict[str, dict[str, Any]] = {}
    for provider in providers:
        if provider in UNIBERT_COLOURS:
            styles[provider] = {"color": UNIBERT_COLOURS[provider], "marker": "o", "linewidth": 2.2, "zorder": 3}
        else:
            number = peers.index(provider) % len(PEER_COLOURS)
            colour, marker = PEER_COLOURS[number], PEER_MARKERS[number]
            styles[provider] = {"color": colour, "marker": marker, "linewidth": 1.2, "markersize": 4.5}
    return styles


def _logarithmic(axes: Axes, values: Sequence[int], name: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=name)
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
