"""The results of ``bench train`` as a printed table, goals and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unibert.bench.goals import Goal, format_goals
from unibert.bench.training.stopwatch import PARTS
from unibert.text import plain_table

Row = Mapping[str, Any]

HEADERS = ("tokens/s", "median", "lowest", "highest", "per CPU s", "MFU", "memory", "first step")
SPEEDUPS = {0.3: 1.23, 0.15: 1.35}
"""Goal by masking rate: UniBERT's speed in that of the fastest peer."""
MEMORY_SHARE = 0.5
TRAINER_SHARE = 0.97
MODULE, TRAINER = "UniBERT, module and AdamW", "UniBERT, whole trainer"


def format_train_results(results: Mapping[str, Any]) -> str:
    """A table with one line for each provider, the parts of a step, and the goals."""
    ran = [row for row in results["rows"] if row["status"] == "ran"]
    lines = [f"peak of matrix products {results['peak_flops'] / 1e9:,.0f} GFLOP/s"]
    lines += plain_table([HEADERS, *(_cells(row) for row in ran)])
    split = [row for row in ran if "parts" in row]
    if split:
        lines.append("")
        lines += plain_table([("ms of a step", "all", *PARTS), *(_part_cells(row) for row in split)])
    exchanging = [row for row in ran if "communication" in row]
    if exchanging:
        lines.append("")
        header = ("communication of a step, contained above", "calls", "MB", "ms")
        lines += plain_table([header, *(cells for row in exchanging for cells in _communication_cells(row))])
    differing = [f"{row['name']} {row['loss_difference']:.1e}" for row in ran if "loss_difference" in row]
    if differing:
        lines += ["", f"largest relative difference of a loss: {', '.join(differing)}"]
    lines += [f"{row['name']}: {row['status']}: {row['why']}" for row in results["rows"] if row["status"] != "ran"]
    return "\n".join([*lines, format_goals(list(evaluate_train_goals(results)))])


def _cells(row: Row) -> Sequence[str]:
    return (
        row["name"],
        *(f"{row[key]:,.0f}" for key in ("tokens_per_second", "tokens_per_second_min", "tokens_per_second_max")),
        f"{row['tokens_per_cpu_second']:,.0f}",
        f"{row['mfu']:.1%}",
        f"{row['peak_bytes'] / 2**30:.2f} GiB",
        f"{row['first_step_seconds']:.1f} s",
    )


def _part_cells(row: Row) -> Sequence[str]:
    parts = row["parts"]
    times = [row["seconds_per_step"], *(parts.get(part, 0.0) for part in PARTS)]
    return row["name"], *(f"{1000 * seconds:,.1f}" for seconds in times)


def _communication_cells(row: Row) -> Iterator[Sequence[str]]:
    for operation, figures in row["communication"].items():
        cells = f"{figures['calls']:g}", f"{figures['bytes'] / 1e6:,.1f}", f"{1000 * figures['seconds']:,.1f}"
        yield f"{row['name']}: {operation}", *cells


def evaluate_train_goals(results: Mapping[str, Any]) -> Iterator[Goal]:
    """The goals that the results can decide: speed and memory against the fastest peer, cost of the trainer."""
    rows = {row["name"]: row for row in results["rows"] if row["status"] == "ran"}
    config = results["config"]
    case = f"V = {config['vocab_size']:,}, {config['masking_rate']:.0%} masked, {results['environment']['device']}"
    peer = max(
        (row for row in rows.values() if row["side"] == "peer"), key=lambda row: row["tokens_per_second"], default=None
    )
    ours = rows.get(MODULE) or rows.get(TRAINER)
    if ours is not None and peer is not None:
        speedup = ours["tokens_per_second"] / peer["tokens_per_second"]
        figure = f"{speedup:.2f} ({peer['name']} {peer['tokens_per_second']:,.0f})"
        if (goal := SPEEDUPS.get(config["masking_rate"])) is not None:
            yield Goal(f"≥ {goal} times the fastest peer", case, figure, speedup >= goal)
        share = ours["peak_bytes"] / peer["peak_bytes"]
        yield Goal(f"≤ {MEMORY_SHARE:.0%} of its memory", case, f"{share:.0%}", share <= MEMORY_SHARE)
    if MODULE in rows and TRAINER in rows:
        share = rows[TRAINER]["tokens_per_second"] / rows[MODULE]["tokens_per_second"]
        yield Goal(f"trainer ≥ {TRAINER_SHARE:.0%} of its module's speed", case, f"{share:.1%}", share >= TRAINER_SHARE)


def draw_train_results(results: Mapping[str, Any], path: Path) -> None:
    """Write a bar of tokens per second for each provider to ``path``, if any was measured."""
    from matplotlib.figure import Figure

    from unibert.reports.plots import BLUE, GREY, INK, VERMILLION, WIDTH, save, style

    rows = [row for row in results["rows"] if row["status"] == "ran"]
    if not rows:
        return
    colours = {"ours": VERMILLION, "peer": GREY, "ablation": BLUE}
    names = {"ours": "UniBERT", "peer": "other trainers", "ablation": "UniBERT with one change"}
    with style():
        figure = Figure(figsize=(WIDTH, 0.26 * len(rows) + 1.4))
        axes = figure.subplots()
        for side, colour in colours.items():
            places = [place for place, row in enumerate(rows) if row["side"] == side]
            speeds = [rows[place]["tokens_per_second"] for place in places]
            if places:
                axes.barh(places, speeds, height=0.7, color=colour, label=names[side])
        for place, row in enumerate(rows):
            ends = [row["tokens_per_second_min"], row["tokens_per_second_max"]]
            axes.plot(ends, [place, place], "|-", color=INK, linewidth=0.8, markersize=6)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("tokens/s, median and range")
        figure.legend(loc="outside upper left", ncols=3, fontsize=8)
        save(figure, path)
