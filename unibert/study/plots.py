"""The plots of a study's report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from unibert.reports.plots import GREY, SCATTER_COLOURS, SCATTER_MARKERS, WIDTH


def scores(content: Mapping[str, Any]) -> Figure:
    """Draw the mean of each seed and arm, a panel for each task."""
    tasks, arms = content["tasks"], content["arms"]
    figure, panels = _panels(len(tasks), len(arms))
    for panel, (name, task) in zip(panels, tasks.items(), strict=True):
        for row, arm in enumerate(arms):
            summary = task["summary"][arm]
            seeds = [100 * value for value in summary["seed_means"]]
            panel.plot(seeds, [row] * len(seeds), "o", color=SCATTER_COLOURS[0], alpha=0.5, markersize=5)
            panel.plot([100 * summary["mean"]] * 2, [row - 0.3, row + 0.3], color=SCATTER_COLOURS[0])
        if task["chance"]:
            panel.axvline(100 * task["chance"], color=GREY, linestyle=":", linewidth=1)
        panel.set_title(name)
    _name_rows(panels, arms)
    return figure


def changes(content: Mapping[str, Any]) -> Figure:
    """Draw each arm's change against the reference with its 95 % interval, a panel for each task."""
    arms = list(content["comparisons"])
    figure, panels = _panels(len(content["tasks"]), len(arms))
    for panel, name in zip(panels, content["tasks"], strict=True):
        for row, arm in enumerate(arms):
            change = content["comparisons"][arm]["tasks"][name]["absolute"]
            if change["low"] is not None:
                panel.plot([100 * change["low"], 100 * change["high"]], [row, row], color=SCATTER_COLOURS[1])
            panel.plot([100 * change["change"]], [row], "o", color=SCATTER_COLOURS[1], markersize=5)
        panel.axvline(0, color=GREY, linewidth=1)
        panel.set_title(name)
    _name_rows(panels, arms)
    return figure


def retrieval_and_probe(content: Mapping[str, Any]) -> Figure:
    """Draw raw retrieval over the accuracy of the linear language probe, a point for each arm and seed."""
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.subplots()
    for number, (arm, seeds) in enumerate(content["diagnostics"].items()):
        accuracies = content["tasks"]["retrieval"]["summary"][arm]["seed_means"]
        axes.plot(
            [100 * seed["probe_linear"] for seed in seeds],
            [100 * accuracy for accuracy in accuracies],
            SCATTER_MARKERS[number % len(SCATTER_MARKERS)],
            # Markers that come again have another colour.
            color=SCATTER_COLOURS[(number + number // len(SCATTER_MARKERS)) % len(SCATTER_COLOURS)],
            label=arm,
        )
    axes.set_xlabel("linear language probe, %")
    axes.set_ylabel("retrieval, %")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _panels(number: int, num_rows: int) -> tuple[Figure, Any]:
    columns = min(3, number)
    lines = -(-number // columns)
    figure = Figure(figsize=(WIDTH * 1.25, lines * (0.9 + 0.24 * num_rows)))
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for unused in grid.flat[number:]:
        unused.remove()
    return figure, list(grid.flat[:number])


def _name_rows(panels: Any, names: list[str]) -> None:
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
