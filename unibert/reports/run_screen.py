"""``unibert watch``: the status of a run on a terminal, renewed while it trains."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from unibert.reports.run_status import RunStatus, RunWatch, State
from unibert.text import duration, percent, short

_COLOURS: dict[State, str] = {
    "running": "green",
    "finished": "green",
    "stopped": "yellow",
    "silent": "yellow",
    "gone": "red",
    "failed": "red",
}
_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 40


def watch_run(run_dir: Path, *, once: bool, interval: float) -> None:
    """Print the status of a run; unless ``once``, renew it until the run has ended or Ctrl-C is pressed.

    On a terminal the screen is renewed; elsewhere a line is printed whenever the run has logged more or its state has
    changed.

    Args:
        run_dir: the run folder, which is only read.
        once: whether to print the status once.
        interval: seconds between two looks.

    Raises:
        UserError: if it is not a run folder or cannot be read.
    """
    watch, console = RunWatch(run_dir), Console(highlight=False)
    status = watch.status()
    if once or (status.has_ended and console.is_terminal):
        console.print(_screen(status, console), soft_wrap=not console.is_terminal)
        return
    try:
        if console.is_terminal:
            _renew(watch, status, console, interval)
        else:
            _print_lines(watch, status, interval)
    except KeyboardInterrupt:
        return


def _renew(watch: RunWatch, status: RunStatus, console: Console, interval: float) -> None:
    with Live(_screen(status, console), console=console, auto_refresh=False) as live:
        while not status.has_ended:
            time.sleep(interval)
            status = watch.status()
            live.update(_screen(status, console), refresh=True)


def _print_lines(watch: RunWatch, status: RunStatus, interval: float) -> None:
    printed = None
    while True:
        if (seen := (status.step, status.state)) != printed:
            printed = seen
            print("  ".join(_line(status)), flush=True)
        if status.has_ended:
            return
        time.sleep(interval)
        status = watch.status()


def _line(status: RunStatus) -> Iterator[str]:
    yield f"step {status.step:,}/{status.num_steps:,} ({status.tokens / status.num_tokens:.1%})"
    yield from (f"{label} {value}" for label, value, _ in _figures(status) if value)
    if status.seconds_to_go is not None:
        yield f"{duration(status.seconds_to_go)} to go"
    yield status.sentence


def _screen(status: RunStatus, console: Console) -> Group:
    share = status.tokens / status.num_tokens
    title = Text.assemble((status.name, "bold"), "  ", (status.sentence, _COLOURS[status.state]))
    bar = Table.grid(padding=(0, 2))
    counts = (
        f"{share:.1%}",
        f"step {status.step:,} of {status.num_steps:,}",
        f"{short(status.tokens)} of {short(status.num_tokens)} tokens",
        *([] if status.seconds_to_go is None else [f"{duration(status.seconds_to_go)} to go"]),
    )
    colour = _COLOURS[status.state]
    drawn = ProgressBar(total=1.0, completed=share, width=_CURVE_WIDTH, complete_style=colour, finished_style=colour)
    bar.add_row(drawn, *counts)
    figures = Table.grid(padding=(0, 2))
    figures.add_column()
    figures.add_column(justify="right")
    for label, value, note in _figures(status):
        figures.add_row(Text(label, "dim"), value, Text(note, "dim"))
    parts: list[Any] = [title, bar, figures]
    if len(status.metrics.losses) > 1 and not console.options.ascii_only:
        parts.append(Text.assemble(("loss  ", "dim"), sparkline(status.metrics.losses, _CURVE_WIDTH)))
    return Group(*parts)


def _figures(status: RunStatus) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and note of each figure that the run has logged."""
    last, heldout, retrieval = status.metrics.training, status.metrics.heldout, status.metrics.retrieval
    if "mlm_loss" in last:
        yield "MLM loss", f"{last['mlm_loss']:.3f}", f"{percent(last['mlm_accuracy'])} correct"
    elif last:
        yield "loss", f"{last['loss']:.3f}", ""
    if heldout:
        unigram = heldout.get("unigram_entropy")
        than = "" if unigram is None else f", token frequencies alone {unigram:.3f}"
        yield "held-out MLM loss", f"{heldout['heldout_mlm_loss']:.3f}", f"after step {heldout['step']:,}{than}"
    if "adversary_accuracy" in last:
        chance = f"chance {percent(last['adversary_chance'])}, " if "adversary_chance" in last else ""
        yield "adversary", percent(last["adversary_accuracy"]), f"{chance}λ {last['reversal_lambda']:.3g}"
    for key, value in last.items():
        if key.startswith("distillation_") and key.endswith("_loss"):
            yield key.removesuffix("_loss").replace("_", " "), f"{value:.4f}", ""
    if retrieval:
        note = f"after step {retrieval['step']:,}, centred {percent(retrieval['retrieval_centred'])}"
        yield "retrieval", percent(retrieval["retrieval_raw"]), note
    if last:
        yield "gradient norm", f"{last['grad_norm']:.3g}", f"learning rate {last['learning_rate']:.3g}"
        mfu = [f"{percent(last['mfu'])} of the peak"] if last.get("mfu") is not None else []
        memory = f"{last['memory_gib']:.1f} GiB"
        yield "tokens/s", short(last["tokens_per_second"]), ", ".join([*mfu, memory])
    if parts := last.get("seconds_per_step"):
        yield "waits for data", percent(parts["data"] / sum(parts.values())), f"of {sum(parts.values()):.3g} s per step"
    if status.checkpoint is not None:
        step, age = status.checkpoint
        yield "checkpoint", f"{step:,}", f"{duration(age)} ago"
    if status.left_out_steps:
        yield "steps left out", f"{status.left_out_steps:,}", "their loss or gradient was not finite"
    if status.starts > 1:
        yield "starts", f"{status.starts}", ""


def sparkline(values: Sequence[float], width: int) -> str:
    """Return a curve of ``width`` characters at most; each shows the mean of an equal part of the values."""
    width = min(width, len(values))
    bounds = [index * len(values) // width for index in range(width + 1)]
    parts = [values[start:end] for start, end in pairwise(bounds)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)
