"""The figures of a run's report.

Every function returns a matplotlib Figure; call it within :func:`style`. Colours are those of Okabe and Ito, which are
distinct for every kind of colour vision. Trained and untrained, raw and centred have the same colours in all figures.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from unibert.evaluation.score_table import retrieval_by_language
from unibert.files import replacing

Record = Mapping[str, Any]

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
INK, GREY, PALE = "#1c2530", "#6b7683", "#c9d0d8"
WIDTH = 6.4
"""Width of a figure in inches: narrow, so that the text is readable on a phone."""

SCATTER_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE, INK, "#8c6d1f")
SCATTER_MARKERS = "os^Dv<>P"
MAX_LABELLED_LANGUAGES = 40
"""Maximum number of languages whose names fit next to a matrix."""

_OBJECTIVES = {
    "loss": ("total loss", INK),
    "mlm_loss": ("masked language modelling", BLUE),
    "adversary_loss": ("discriminator", VERMILLION),
    "distillation_loss": ("distillation", GREEN),
    "distillation_logits_loss": ("distillation: logits", GREEN),
    "distillation_relations_loss": ("distillation: relations", ORANGE),
    "distillation_hidden_loss": ("distillation: hidden states", PURPLE),
}
_DIAGNOSTICS = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm before clipping",
    "tokens_per_second": "throughput (tokens/s)",
    "memory_gib": "memory (GiB)",
    "masking_rate": "masking rate",
    "padding_share": "padding (share of tokens)",
}
_PARTS = {"baseline": "untrained", "model": "trained"}
_PART_LINES = (("baseline", "#a3adb8", 3.5), ("model", BLUE, 1.6))
"""Colour and width of the lines of each part, in order of drawing."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Set the report's style, in which figures are both drawn and saved."""
    with matplotlib.rc_context(
        {
            "figure.dpi": 160,
            "figure.constrained_layout.use": True,
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "text.color": INK,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.edgecolor": PALE,
            "axes.labelcolor": GREY,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e8ebef",
            "grid.linewidth": 0.8,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "legend.handlelength": 2.6,
            "lines.linewidth": 1.8,
        }
    ):
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", facecolor="white")


def loss_curves(training: Sequence[Record]) -> Figure:
    """One panel for each objective that the run had, over steps."""
    present = {key: line for key, line in _OBJECTIVES.items() if any(key in record for record in training)}
    figure, panels = _panels(len(present), columns=2, height=2.1)
    for axes, (key, (title, colour)) in zip(panels, present.items(), strict=True):
        _curve(axes, training, key, colour)
        axes.set(title=title, ylabel="nats")
    _step_axes(panels)
    return figure


def heldout_loss(training: Sequence[Record], heldout: Sequence[Record]) -> Figure:
    """Held-out and training MLM loss over steps, with the unigram entropy as a baseline."""
    figure, (axes,) = _panels(1, columns=1, height=3.4)
    if any("mlm_loss" in record for record in training):
        _curve(axes, training, "mlm_loss", PALE, label="training")
    axes.plot(*_series(heldout, "heldout_mlm_loss"), color=BLUE, marker="o", markersize=4, label="held out")
    entropies = [record["unigram_entropy"] for record in heldout if "unigram_entropy" in record]
    if entropies:
        axes.axhline(entropies[-1], color=VERMILLION, linestyle="--", label="unigram entropy")
    axes.set(ylabel="MLM loss (nats per token)")
    axes.legend(loc="best")
    _step_axes([axes])
    return figure


def mark_steps(figure: Figure, steps: Sequence[int]) -> Figure:
    """Mark steps, such as those at which a run branched off, in every panel over steps; return the figure."""
    for axes in figure.axes:
        for step in steps:
            axes.axvline(step, color=GREY, linestyle=":", linewidth=1.2)
    return figure


def compared_losses(segments: Mapping[str, tuple[Sequence[Record], Sequence[Record]]], given: Sequence[str]) -> Figure:
    """MLM losses of several runs over tokens, held out with marks, in training pale; a steep first quarter is cut off.

    Args:
        segments: records of training and held-out evaluations by name of the run; those of a branch begin with the last
            ones of its parent.
        given: names of the runs to colour; ancestors of them are grey.
    """
    figure, (axes,) = _panels(1, columns=1, height=3.8)
    colours = dict(zip(given, SCATTER_COLOURS * (len(given) // len(SCATTER_COLOURS) + 1), strict=False))
    drawn: list[tuple[float, float]] = []
    for name, (training, heldout) in segments.items():
        colour = colours.get(name, GREY)
        steps, tokens = _series(training, "tokens")
        if not steps:
            continue
        logged, losses = _series(training, "mlm_loss")
        axes.plot(np.interp(logged, steps, tokens), losses, color=colour, alpha=0.3, linewidth=0.8)
        drawn += zip(np.interp(logged, steps, tokens), losses, strict=True)
        measured, losses = _series(heldout, "heldout_mlm_loss")
        marker = "o" if len(measured) <= 40 else None
        axes.plot(np.interp(measured, steps, tokens), losses, color=colour, label=name, marker=marker, markersize=3.5)
        drawn += zip(np.interp(measured, steps, tokens), losses, strict=True)
    last = max((tokens for tokens, _ in drawn), default=0.0)
    if late := [loss for tokens, loss in drawn if tokens >= last / 4 and math.isfinite(loss)]:
        margin = 0.05 * (max(late) - min(late)) or 0.1
        axes.set_ylim(min(late) - margin, max(late) + margin)
    axes.set(xlabel="tokens", ylabel="MLM loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(loc="best")
    return figure


def retrieval_over_run(points: Sequence[Record]) -> Figure:
    """Top-1 accuracy of each checkpoint, raw and centred, over tokens."""
    figure, (axes,) = _panels(1, columns=1, height=3.2)
    for kind, colour in (("raw", VERMILLION), ("centred", BLUE)):
        _over_tokens(axes, points, kind, colour, label=kind)
    _accuracy_over_tokens(axes, "top-1 accuracy")
    return figure


def measured_retrieval(measured: Sequence[Record]) -> Figure:
    """Retrieval, raw and centred, and the language probe, each with chance, as training measured them, over tokens."""
    figure, panels = _panels(2, columns=2, height=3.2)
    for kind, colour in (("raw", VERMILLION), ("centred", BLUE)):
        _over_tokens(panels[0], measured, f"retrieval_{kind}", colour, label=kind)
    _over_tokens(panels[1], measured, "probe_linear", VERMILLION, label="linear probe, raw")
    panels[0].set_title("translation found")
    panels[1].set_title("language identified")
    labels = {"retrieval": "top-1 accuracy", "probe": "balanced accuracy"}
    for axes, (question, label) in zip(panels, labels.items(), strict=True):
        axes.axhline(measured[-1][f"{question}_chance"], color=GREY, linestyle=":", label="chance")
        _accuracy_over_tokens(axes, label)
    return figure


def language_losses(losses: Mapping[str, float], entropies: Mapping[str, float]) -> Figure:
    """One bar per language, lowest loss first, with the language's unigram entropy as a tick."""
    languages = sorted(losses, key=losses.__getitem__)
    figure, axes = _rows_figure(len(languages))
    positions = np.arange(len(languages))
    axes.barh(positions, [losses[language] for language in languages], color=BLUE, height=0.7, label="MLM loss")
    known = [(i, entropies[language]) for i, language in enumerate(languages) if language in entropies]
    if known:
        rows, values = zip(*known, strict=True)
        axes.scatter(values, rows, marker="|", s=70, linewidths=2, color=VERMILLION, zorder=3, label="unigram entropy")
    _name_rows(axes, languages)
    axes.set(xlabel="nats per token", xlim=(0, None))
    _legend_above(axes, reverse=True)
    return figure


def discriminator(training: Sequence[Record]) -> Figure:
    """The discriminator's accuracy and chance over steps, and λ on a second axis."""
    figure, (axes,) = _panels(1, columns=1, height=3.4)
    _curve(axes, training, "adversary_accuracy", BLUE, label="discriminator accuracy")
    if any("adversary_chance" in record for record in training):
        steps, chances = _series(training, "adversary_chance")
        axes.plot(steps, chances, color=GREY, linestyle="--", label="chance")
    axes.set(ylabel="accuracy", ylim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = axes.get_legend_handles_labels()
    if any("reversal_lambda" in record for record in training):
        right = axes.twinx()
        steps, strengths = _series(training, "reversal_lambda")
        handles += right.plot(steps, strengths, color=ORANGE, linestyle=":", linewidth=2)
        labels.append("reversal λ (right)")
        right.set(ylabel="reversal strength λ", ylim=(0, None))
        right.grid(visible=False)
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
    _step_axes([axes])
    return figure


def training_diagnostics(training: Sequence[Record]) -> Figure:
    """Small panels over steps: learning rate, gradient norm, throughput, memory, masking rate, padding."""
    present = {key: title for key, title in _DIAGNOSTICS.items() if any(key in record for record in training)}
    figure, panels = _panels(len(present), columns=2, height=1.8)
    for axes, (key, title) in zip(panels, present.items(), strict=True):
        _curve(axes, training, key, BLUE)
        axes.set_title(title, fontsize=9.5)
        axes.set_ylim(bottom=0)
        if key in ("masking_rate", "padding_share"):
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        elif key == "tokens_per_second":
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    _step_axes(panels)
    return figure


def has_all_pairs(scores: Record) -> bool:
    """Whether most pairs of languages were scored, as with N-way files, not only those with a pivot, as in Tatoeba."""
    num_languages = len(scores["data"]["languages"])
    return len(scores["model"]["retrieval"]) > 0.5 * num_languages * (num_languages - 1)


def retrieval_matrices(scores: Record) -> Figure:
    """Top-1 accuracy between all languages at the headline layer: raw and centred, untrained and trained."""
    layer, languages = str(scores["headline_layer"]), scores["data"]["languages"]
    parts = {key: title for key, title in _PARTS.items() if scores[key]}
    matrices = {
        (kind, key): _matrix(scores[key]["retrieval"], languages, layer, kind)
        for kind in ("raw", "centred")
        for key in parts
    }
    top = max(float(np.nanmax(matrix)) for matrix in matrices.values()) or 1.0
    figure = Figure(figsize=(WIDTH, len(parts) * WIDTH / 2 + 0.7), layout="compressed")
    grid = figure.subplots(len(parts), 2, squeeze=False)
    colours = matplotlib.colormaps["Blues"].with_extremes(bad="#f1f3f5")
    labelled = len(languages) <= MAX_LABELLED_LANGUAGES
    for axes, ((kind, key), matrix) in zip(grid.flat, matrices.items(), strict=True):
        image = axes.imshow(matrix, cmap=colours, vmin=0, vmax=top)
        axes.set_title(f"{parts[key]}, {kind}")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        ticks = range(len(languages)) if labelled else []
        size = min(9.0, 150 / len(languages))
        axes.set_xticks(ticks, languages if labelled else [], rotation=90 if len(languages) > 12 else 0, fontsize=size)
        axes.set_yticks(ticks, languages if labelled else [], fontsize=size)
        axes.tick_params(length=0)
        if len(languages) <= 10:
            for (row, column), value in np.ndenumerate(matrix):
                if row != column and not math.isnan(value):
                    axes.text(
                        column,
                        row,
                        f"{100 * value:.0f}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if value > 0.55 * top else INK,
                    )
    for axes in grid[:, 0]:
        axes.set_ylabel("query language")
    for axes in grid[-1]:
        axes.set_xlabel("candidate language")
    bar = figure.colorbar(
        image, ax=grid, location="bottom", shrink=0.6, aspect=40, format=PercentFormatter(1), label="top-1 accuracy"
    )
    bar.outline.set_visible(False)
    return figure


def retrieval_by_language_dots(scores: Record) -> Figure:
    """One row per language: mean top-1 accuracy over its directions, raw to centred, untrained and trained."""
    layer = str(scores["headline_layer"])
    accuracies = {key: retrieval_by_language(scores[key], layer) for key in _PARTS if scores[key]}
    languages = sorted(accuracies["model"], key=lambda language: accuracies["model"][language]["raw"], reverse=True)
    figure, axes = _rows_figure(len(languages))
    positions = np.arange(len(languages))
    for key, colour in (("baseline", GREY), ("model", BLUE)):
        if key not in accuracies:
            continue
        raw, centred = ([accuracies[key][language][kind] for language in languages] for kind in ("raw", "centred"))
        axes.hlines(positions, raw, centred, color=colour, linewidth=1, alpha=0.5)
        for values, fill, kind in ((raw, "white", "raw"), (centred, colour, "centred")):
            dots: dict[str, Any] = {"facecolors": fill, "edgecolors": colour, "s": 26, "zorder": 3, "clip_on": False}
            axes.scatter(values, positions, label=f"{_PARTS[key]}, {kind}", **dots)
    _name_rows(axes, languages)
    axes.set(xlabel="top-1 accuracy, mean over the language's directions", xlim=(0, None))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    _legend_above(axes)
    return figure


def retrieval_layers(scores: Record) -> Figure:
    """Mean top-1 accuracy of every layer: raw and centred, untrained and trained, with chance."""
    figure, (axes,) = _panels(1, columns=1, height=3.2)
    for key, kind, line in _layer_lines(scores):
        by_layer = scores[key]["retrieval_mean"]
        axes.plot([int(layer) for layer in by_layer], [entry[kind] for entry in by_layer.values()], **line)
    _accuracy_axes(axes, scores, scores["chance"]["retrieval"], "top-1 accuracy")
    axes.set_ylim(bottom=0)
    _legend_above(axes, columns=3)
    return figure


def probe_layers(scores: Record) -> Figure:
    """Accuracy of the fresh probes at every layer: one panel per classifier, with chance."""
    figure, panels = _panels(2, columns=2, height=3.2, share_y=True)
    for axes, (classifier, title) in zip(panels, (("linear", "linear probe"), ("mlp", "MLP probe")), strict=True):
        for key, kind, line in _layer_lines(scores):
            by_layer = {int(layer): entry[kind][classifier] for layer, entry in scores[key]["probe"].items()}
            means, deviations = ([entry[name] for entry in by_layer.values()] for name in ("mean", "std"))
            axes.errorbar(list(by_layer), means, yerr=deviations, **line)
        _accuracy_axes(axes, scores, scores["chance"]["probe"], "")
        axes.set(title=title, ylim=(0, 1.03))
    panels[0].set_ylabel("balanced accuracy")
    _legend_above(panels[0], columns=3)
    return figure


def cka_layers(scores: Record) -> Figure:
    """Mean CKA of two languages at every layer, untrained and trained."""
    figure, (axes,) = _panels(1, columns=1, height=3.0)
    for key, colour, width in _PART_LINES:
        if scores[key]:
            known = {int(layer): value for layer, value in scores[key]["cka_mean"].items() if value is not None}
            (line,) = axes.plot(list(known), list(known.values()), color=colour, linewidth=width, label=_PARTS[key])
            line.set(marker="o", markersize=4.5 + width / 2)
    _layer_axes(axes, scores, "mean CKA")
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1)
    _legend_above(axes)
    return figure


def sentence_planes(projections: Record) -> Figure:
    """Sentence vectors on their first two principal components: raw and centred, untrained and trained."""
    parts = {key: title for key, title in _PARTS.items() if projections[key]}
    languages = list(projections["model"]["raw"])
    spread = np.linspace(0, len(languages) - 1, min(len(languages), len(SCATTER_COLOURS))).round().astype(int)
    coloured = [languages[i] for i in spread]
    figure = Figure(figsize=(WIDTH, len(parts) * WIDTH / 2))
    grid = figure.subplots(len(parts), 2, squeeze=False)
    cells = [(kind, key) for kind in ("raw", "centred") for key in parts]
    for axes, (kind, key) in zip(grid.flat, cells, strict=True):
        points = {language: np.array(projections[key][kind][language]) for language in languages}
        for language, colour, marker in zip(coloured, SCATTER_COLOURS, SCATTER_MARKERS, strict=False):
            axes.scatter(*points[language].T, s=14, color=colour, marker=marker, alpha=0.75, lw=0, label=language)
        if len(coloured) < len(languages):
            others = np.concatenate([points[language] for language in languages if language not in coloured])
            axes.scatter(*others.T, s=5, color=PALE, lw=0, label="others", zorder=0)
        axes.set_title(f"{parts[key]}, {kind}")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
    for axes in grid[:, 0]:
        axes.set_ylabel("component 2")
    for axes in grid[-1]:
        axes.set_xlabel("component 1")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=5, markerscale=1.4)
    return figure


def _panels(number: int, *, columns: int, height: float, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """``number`` panels of ``height`` inches, row by row."""
    rows = math.ceil(number / columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.2))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    for axes in grid.flat[number:]:
        axes.remove()
    return figure, list(grid.flat[:number])


def _rows_figure(num_rows: int) -> tuple[Figure, Axes]:
    figure, (axes,) = _panels(1, columns=1, height=1.1 + 0.19 * num_rows)
    axes.set_ylim(num_rows - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.tick_params(axis="y", length=0)


def _legend_above(axes: Axes, *, reverse: bool = False, columns: int = 4) -> None:
    axes.figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns, columnspacing=1.2, reverse=reverse
    )


def _series(records: Sequence[Record], key: str) -> tuple[list[int], list[float]]:
    points = [(record["step"], record[key]) for record in records if key in record]
    return [step for step, _ in points], [math.nan if value is None else value for _, value in points]


def _curve(axes: Axes, records: Sequence[Record], key: str, colour: str, label: str | None = None) -> None:
    """Plot a line. A long one is drawn pale, with its running mean over a fiftieth of its length on top."""
    steps, values = _series(records, key)
    width = len(values) // 50
    if width < 3:
        axes.plot(steps, values, color=colour, label=label, marker="o" if len(values) == 1 else None)
        return
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    means = np.convolve(values, np.ones(width) / width, mode="valid")
    axes.plot(steps[width // 2 : width // 2 + len(means)], means, color=colour, label=label)


def _over_tokens(axes: Axes, records: Sequence[Record], key: str, colour: str, label: str) -> None:
    tokens, values = [record["tokens"] for record in records], [record[key] for record in records]
    # Marks of measurements that follow closely would hide the line.
    axes.plot(tokens, values, color=colour, marker="o" if len(values) <= 40 else None, markersize=4, label=label)


def _accuracy_over_tokens(axes: Axes, label: str) -> None:
    axes.set(xlabel="tokens", ylabel=label, ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(loc="best")


def _step_axes(panels: Sequence[Axes]) -> None:
    panels[0].figure.align_ylabels()
    for axes in panels:
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _layer_lines(scores: Record) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield key of the part, raw or centred, and its line's style. Untrained lines are broad, pale and come first."""
    for key, colour, width in _PART_LINES:
        for kind, dashes, fill in (("raw", (0, (2, 1.2)), "white"), ("centred", "solid", colour)):
            if scores[key]:
                line = {"color": colour, "linewidth": width, "linestyle": dashes, "label": f"{_PARTS[key]}, {kind}"}
                yield key, kind, line | {"marker": "o", "markersize": 4.5 + width / 2, "markerfacecolor": fill}


def _accuracy_axes(axes: Axes, scores: Record, chance: float, ylabel: str) -> None:
    axes.axhline(chance, color=VERMILLION, linestyle=":", label="chance")
    _layer_axes(axes, scores, ylabel)
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _layer_axes(axes: Axes, scores: Record, ylabel: str) -> None:
    axes.axvspan(scores["headline_layer"] - 0.25, scores["headline_layer"] + 0.25, color="#eef1f4", zorder=0)
    axes.set(xlabel="layer (0: embeddings)", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _matrix(retrieval: Record, languages: Sequence[str], layer: str, kind: str) -> np.ndarray:
    matrix = np.full((len(languages), len(languages)), math.nan)
    for direction, layers in retrieval.items():
        source, target = direction.split(">")
        matrix[languages.index(source), languages.index(target)] = layers[layer][kind]
    return matrix
