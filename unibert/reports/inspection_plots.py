"""Plots of ``unibert corpus inspect``: tokens and epochs by language, the mixture over progress."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from unibert.files import replacing
from unibert.languages import LANGUAGES
from unibert.reports.plots import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, SKY, VERMILLION, WIDTH, style
from unibert.stream.forecast import WORTHWHILE_EPOCHS, Forecast

Row = Mapping[str, Any]

AREA_COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, "#8c6d1f", "#2f4f4f", "#b9a44c", "#7a4b2a")
INCHES_PER_LANGUAGE = 0.1
"""Width that a vertical three-letter code needs."""
MAX_BINS = 60
DRAWS_PER_BIN = 40
"""Enough draws per bin that the random choice of shards does not blur its shares."""


def draw(rows: Sequence[Row], forecast: Forecast | None, path: Path) -> None:
    """Write ``path``.png and ``path``.svg, each atomically."""
    # A fixed salt makes equal figures equal files.
    with style(), matplotlib.rc_context({"svg.hashsalt": "unibert"}):
        figure = inspection(rows, forecast)
        for suffix, metadata in ((".png", None), (".svg", {"Date": None})):
            with replacing(path.with_suffix(suffix)) as unfinished:
                figure.savefig(unfinished, format=suffix[1:], facecolor="white", metadata=metadata)


def inspection(rows: Sequence[Row], forecast: Forecast | None) -> Figure:
    """Plot tokens of each language, most first; with a run also planned tokens, epochs, and shares over progress."""
    if forecast is not None:
        rows = [row for row in rows if row["language"] in forecast.languages]
    width = max(WIDTH, 1.2 + INCHES_PER_LANGUAGE * len(rows))
    heights = [2.8] if forecast is None else [2.8, 2.4, 3.0]
    figure = Figure(figsize=(width, sum(heights)))
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _tokens(panels[0], rows, forecast is not None)
    if forecast is not None:
        _epochs(panels[1], rows, forecast)
        _shares(panels[2], forecast)
    return figure


def _tokens(axes: Axes, rows: Sequence[Row], planned: bool) -> None:
    positions = np.arange(len(rows))
    natural = np.array([row["tokens"] for row in rows], dtype=float)
    axes.bar(positions, natural, width=0.8, color=PALE, label="corpus")
    if planned:
        run = np.array([row["run_tokens"] or np.nan for row in rows], dtype=float)
        proportional = np.nansum(run) * natural / natural.sum()
        _dots(axes, positions, run, BLUE, "run")
        axes.step(positions, proportional, where="mid", color=GREY, linewidth=1.2, label="run, if proportional")
        _legend(axes)
    axes.set(title="Tokens by language", ylabel="tokens")
    _logarithmic(axes, natural.min() / 2)
    _name_columns(axes, rows)


def _epochs(axes: Axes, rows: Sequence[Row], forecast: Forecast) -> None:
    epochs = np.array([row["epochs"] or np.nan for row in rows], dtype=float)
    repeated = epochs > WORTHWHILE_EPOCHS
    positions = np.arange(len(rows))
    for chosen, colour in ((~repeated, BLUE), (repeated, VERMILLION)):
        _dots(axes, positions[chosen], epochs[chosen], colour, None)
    label = f"{WORTHWHILE_EPOCHS:g} epochs"
    axes.axhline(WORTHWHILE_EPOCHS, color=VERMILLION, linestyle=":", linewidth=1.2, label=label)
    if (cap := forecast.max_epochs) is not None:
        axes.axhline(cap, color=INK, linestyle="--", linewidth=1.2, label=f"max_epochs {cap:g}")
    _legend(axes)
    axes.set(title="Epochs by language", ylabel="epochs")
    _logarithmic(axes, min(np.nanmin(epochs), WORTHWHILE_EPOCHS) / 1.5)
    axes.set_ylim(top=1.5 * max(np.nanmax(epochs), WORTHWHILE_EPOCHS))
    _name_columns(axes, rows)


def _shares(axes: Axes, forecast: Forecast) -> None:
    """Plot the shares as drawn, in bins whose edges include the usual bounds of phases."""
    bins = next((number for number in (MAX_BINS, 30, 20, 10) if forecast.num_draws >= DRAWS_PER_BIN * number), 5)
    edges = np.linspace(0, 1, bins + 1)
    drawn = np.array([forecast.tokens_between(start, end) for start, end in pairwise(edges.tolist())])
    by_language = len(forecast.languages) <= len(AREA_COLOURS)
    groups: dict[str, Any] = defaultdict(float)
    for index, code in enumerate(forecast.languages):
        groups[code if by_language else _family(code)] += drawn[:, index]
    ordered = sorted(groups, key=lambda name: -groups[name].sum())
    if len(ordered) > len(AREA_COLOURS):
        ordered, others = ordered[: len(AREA_COLOURS)], ordered[len(AREA_COLOURS) :]
        groups["others"] = sum(groups[name] for name in others)
        ordered.append("others")
    total = drawn.sum(axis=1)
    floor = np.zeros(bins)
    handles = []
    for name, colour in zip(ordered, (*AREA_COLOURS, PALE), strict=False):
        top = floor + groups[name] / total
        handles.append(axes.stairs(top, edges, baseline=floor, fill=True, color=colour, linewidth=0, label=name))
        axes.stairs(top, edges, baseline=None, color="white", linewidth=0.6)
        floor = top
    for phase in forecast.phases[1:]:
        axes.axvline(phase.start, color=INK, linestyle=":", linewidth=1.2)
    kind = "language" if by_language else "family"
    axes.set(
        title=f"Share of each {kind} in what the run reads", xlabel="progress of the run", xlim=(0, 1), ylim=(0, 1)
    )
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    axes.legend(handles=handles[::-1], loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, handlelength=1.2)


def _family(code: str) -> str:
    return LANGUAGES[code].family.split(": ")[-1] if code in LANGUAGES else "unknown"


def _dots(axes: Axes, positions: Any, values: Any, colour: str, label: str | None) -> None:
    axes.plot(positions, values, linestyle="none", marker="o", markersize=4, color=colour, label=label, zorder=3)


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8, handlelength=1.6, borderaxespad=0)


def _logarithmic(axes: Axes, minimum: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(minimum, 1e-3))
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _tick(value: float, _position: int | None) -> str:
    return f"{value:g}" if value < 1000 else EngFormatter(sep="")(value).replace("G", "B")


def _name_columns(axes: Axes, rows: Sequence[Row]) -> None:
    vertical = len(rows) > 40
    size = 9 if len(rows) <= 20 else 7
    axes.set_xticks(range(len(rows)), [row["language"] for row in rows], fontsize=size, rotation=90 if vertical else 0)
    axes.tick_params(axis="x", length=0, pad=2)
    axes.set_xlim(-0.8, len(rows) - 0.2)
    axes.grid(visible=False, axis="x")
