"""The figures of a corpus's page, as SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from unibert.reports.corpus_stages import num_dropped, stages_of
from unibert.reports.plots import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, SKY, VERMILLION, WIDTH, style

_STAGE_COLOURS = {
    "reading": PALE,
    "your function": INK,
    "filters": ORANGE,
    "language": PURPLE,
    "evaluation sets": VERMILLION,
    "copies and stubs": SKY,
    "other rules": GREY,
}
_LINES = ((INK, "-"), (BLUE, "-"), (GREEN, "--"), (VERMILLION, ":"))
_MAX_NAMED_LANGUAGES = 60


def svg_uri(figure: Figure) -> str:
    """Return a figure as an address that a page can embed; equal figures give equal ones."""
    content = io.BytesIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": "unibert"}):
        figure.savefig(content, format="svg", facecolor="white", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def outcomes(languages: Mapping[str, Mapping[str, Any]]) -> Figure:
    """One row per language, most kept documents first: how many were read and kept, and what share went where."""
    codes = sorted(languages, key=lambda code: (-languages[code]["kept"], code))
    entries = [languages[code] for code in codes]
    rows = np.arange(len(codes))
    with style():
        figure = Figure(figsize=(WIDTH, 1.2 + 0.19 * len(codes)))
        sizes, shares = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.6])
        read, kept = (np.array([entry[key] for entry in entries], dtype=float) for key in ("read", "kept"))
        sizes.hlines(rows, np.maximum(kept, 1), np.maximum(read, 1), color=PALE, linewidth=1.2)
        sizes.scatter(np.maximum(read, 1), rows, s=20, facecolors="white", edgecolors=GREY, zorder=3, label="read")
        sizes.scatter(kept[kept > 0], rows[kept > 0], s=20, color=BLUE, zorder=3, label="kept")
        decades = np.log10([max(1, kept.min()) * 0.9, max(10, read.max()) * 1.1])
        limits = (10.0 ** np.floor(decades[0]), 10.0 ** np.ceil(decades[1]))
        sizes.set(xscale="log", xlabel="documents", xlim=limits, ylim=(len(codes) - 0.4, -0.6))
        sizes.xaxis.set_major_locator(LogLocator(numticks=5))
        sizes.xaxis.set_minor_formatter(NullFormatter())
        sizes.xaxis.set_major_formatter(EngFormatter(sep=""))
        sizes.set_yticks(rows, codes, fontsize=8.5)
        left = np.zeros(len(codes))
        parts = [("kept", BLUE, kept)]
        for stage in stages_of(reason for entry in entries for reason in entry["dropped"]):
            dropped = np.array([num_dropped(stage, entry) for entry in entries], dtype=float)
            parts.append((stage.name, _STAGE_COLOURS[stage.name], dropped))
        for name, colour, counts in parts:
            width = counts / np.maximum(read, 1)
            shares.barh(rows, width, left=left, height=0.75, color=colour, label=name)
            left += width
        shares.set(xlabel="share of those read", xlim=(0, 1))
        shares.xaxis.set_major_formatter(PercentFormatter(1))
        for axes in (sizes, shares):
            axes.grid(visible=False, axis="y")
            axes.tick_params(axis="y", length=0)
        handles, labels = sizes.get_legend_handles_labels()
        bars, names = shares.get_legend_handles_labels()
        figure.legend(handles + bars[1:], labels + names[1:], loc="outside upper left", ncols=4, columnspacing=1.2)
    return figure


def mixtures(codes: Sequence[str], shares: Mapping[float, npt.NDArray[np.float64]]) -> Figure:
    """The share of each language, (languages,), under each sampling exponent; the languages are in this order."""
    positions = np.arange(len(codes))
    with style():
        figure = Figure(figsize=(WIDTH, 3.4))
        axes = figure.subplots()
        for (exponent, share), (colour, dashes) in zip(shares.items(), _LINES, strict=True):
            (line,) = axes.plot(positions, share, color=colour, linestyle=dashes, label=f"{exponent:g}")
            line.set(marker="o", markersize=2.5)
        axes.set(yscale="log", ylabel="share of a run's tokens", xlim=(-0.6, len(codes) - 0.4))
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=False, axis="x")
        if len(codes) <= _MAX_NAMED_LANGUAGES:
            size = 8.5 if len(codes) <= 24 else 6.5
            axes.set_xticks(positions, codes, fontsize=size, rotation=0 if len(codes) <= 14 else 90)
        else:
            axes.set_xlabel("languages, most tokens first")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, title="sampling exponent")
    return figure
