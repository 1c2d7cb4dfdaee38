"""``unibert bench gpu``: everything that wants a CUDA GPU, in two stages that fit a quarter of an hour with one.

Each stage is one command that ends by itself, stage 1 within six minutes and stage 2 within seven. A part of it has a
budget and may use what earlier parts left of theirs; when that is used up its processes are killed, and what it had
written stays. Parts marked ``if_time`` come last, and only while the stage's time lasts. A part that fails is recorded
and does not stop the next; a part that is run again replaces what it left.

The output folder gets a few files, each when its part ends or earlier: ``summary.json``, which holds for each part
``verdict`` (ok, FAILED, not run), ``seconds``, ``figure``, ``details`` and, where there is one, ``data``;
``stage-1.txt`` or ``stage-2.txt`` with all that the parts printed; and the parts' own results.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from unibert.bench.gpu import checks, times, trainings
from unibert.bench.gpu.machine import check_gpu
from unibert.bench.gpu.turn import Outcome, Turn
from unibert.environment import describe_environment
from unibert.errors import UserError
from unibert.files import write_json
from unibert.text import compact_markdown_table

SECONDS_AROUND = 16.0
"""To start Python and torch before a stage's clock runs, and to end after the last part."""


@dataclass(frozen=True)
class Part:
    """One thing to find out."""

    name: str
    run: Callable[[Turn], Outcome]
    budget: float
    """Seconds."""
    if_time: bool = False
    """Has no time of its own in a stage: it takes what is left, up to its budget."""
    least: float = 0.0
    """Seconds without which it is not begun."""


@dataclass(frozen=True)
class Stage:
    """Parts that are run by one command."""

    seconds: float
    """In all, with `SECONDS_AROUND`."""
    parts: tuple[Part, ...]


STAGES = {
    1: Stage(
        360,
        (
            Part("numerics", checks.numerics, 145),
            Part("headline", times.headline, 152),
            Part("profile", times.profile, 47),
        ),
    ),
    2: Stage(
        420,
        (
            Part("sanitizer", checks.sanitizer, 65),
            Part("widths", times.widths, 82),
            Part("tune", times.tune, 115),
            Part("training", trainings.training, 84),
            Part("compile", checks.compiled, 58),
            Part("trainer", trainings.trainer, 75, if_time=True, least=30),
            Part("checkpoints", trainings.checkpoints, 120, if_time=True, least=75),
            Part("attention", times.attention, 100, if_time=True, least=25),
        ),
    ),
}


@dataclass(kw_only=True)
class GpuBenchConfig:
    """Which stage or parts."""

    stage: Literal[1, 2] | None = None
    """Stage to run. Default: both, one after the other."""

    parts: list[str] | None = None
    """Parts to run, of any stage and in this order, instead of a stage."""

    minutes: float | None = None
    """Minutes for each part, instead of its budget."""

    rehearse: bool = False
    """Run on a CPU, with Triton's interpreter and sizes that stand in for the real ones."""

    output: Path | None = None
    """Folder for the results. Default: docs/benchmarks/gpu-NAME."""

    def __post_init__(self) -> None:
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes: must be positive, got {self.minutes}")
        for name in self.parts or []:
            if name not in PARTS:
                raise ValueError(f"parts: there is no {name!r}; the parts are {', '.join(PARTS)}")

    def chosen(self) -> list[tuple[str, Stage]]:
        """What to run, each with its own clock: a name for the log, and the stage."""
        if self.parts is not None:
            # Who names a part wants it run.
            parts = tuple(Part(name, PARTS[name].run, PARTS[name].budget) for name in self.parts)
            stages = {"parts": Stage(SECONDS_AROUND + sum(part.budget for part in parts), parts)}
        else:
            stages = {f"stage-{number}": stage for number, stage in STAGES.items() if self.stage in (None, number)}
        if self.minutes is None:
            return list(stages.items())
        changed = []
        for name, stage in stages.items():
            parts = tuple(Part(part.name, part.run, 60 * self.minutes) for part in stage.parts)
            changed.append((name, Stage(SECONDS_AROUND + 60 * self.minutes * len(parts), parts)))
        return changed


PARTS = {part.name: part for stage in STAGES.values() for part in stage.parts}


def bench_gpu(config: GpuBenchConfig) -> bool:
    """Run a stage or parts, write every part's result when it ends, and print a table last.

    Returns:
        whether no part failed.

    Raises:
        UserError: if torch finds no CUDA GPU, or the folder cannot be made.
    """
    started = time.monotonic()
    if not config.rehearse:
        check_gpu()
    environment = describe_environment()
    name = re.sub(r"[^a-z0-9]+", "-", str(environment["device"]).lower()).strip("-")
    folder = config.output or Path("docs/benchmarks") / ("gpu-rehearsal" if config.rehearse else f"gpu-{name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error
    summary: dict[str, Any] = {
        "format": 2,
        "environment": environment,
        "rehearsal": config.rehearse,
        "parts": _earlier_parts(folder),
    }
    ran: list[str] = []
    for name, stage in config.chosen():
        with (folder / f"{name}.txt").open("w", encoding="utf-8") as log:
            for part, record in _run_stage(stage, folder, log, config.rehearse, started):
                ran.append(part)
                # Set anew, so that parts stand in the order in which they were last run.
                summary["parts"].pop(part, None)
                summary["parts"][part] = record
                write_json(folder / "summary.json", summary)
        started = time.monotonic()
    seconds = sum(summary["parts"][part]["seconds"] for part in ran)
    print(f"\n{environment['device']}: {seconds:.0f} s, results in {folder}\n")
    print(format_table(summary["parts"]), flush=True)
    return all(summary["parts"][part]["verdict"] != "FAILED" for part in ran)


def _run_stage(
    stage: Stage, folder: Path, log: TextIO, rehearsal: bool, started: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and record of each part, when it ends."""
    end = started + stage.seconds - SECONDS_AROUND
    reserved = sum(part.budget for part in stage.parts if not part.if_time)
    for part in stage.parts:
        begun = time.monotonic()
        if part.if_time:
            part_end = min(end, begun + part.budget)
        else:
            # The later parts keep their budgets; what the earlier ones left is this one's.
            reserved -= part.budget
            part_end = end - reserved
        left = part_end - begun
        heading = f"== {part.name}, at most {left:.0f} s"
        print(f"\n{heading}", flush=True)
        log.write(f"{heading}\n")
        if left < max(1.0, part.least):
            outcome = Outcome("not run", f"{max(0.0, left):.0f} s were left, it wants {part.least:.0f}")
        else:
            try:
                outcome = part.run(Turn(folder=folder, end=part_end, log=log, rehearsal=rehearsal))
            except Exception as error:  # whatever goes wrong is this part's result
                outcome = Outcome("FAILED", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        seconds = round(time.monotonic() - begun, 1)
        print(f"{outcome.verdict}: {outcome.figure}", flush=True)
        if outcome.details:
            print(outcome.details, flush=True)
        log.write(f"== {part.name}: {outcome.verdict}, {seconds} s: {outcome.figure}\n{outcome.details}\n\n")
        log.flush()
        yield (
            part.name,
            {
                "verdict": outcome.verdict,
                "seconds": seconds,
                "figure": outcome.figure,
                "details": outcome.details,
                "data": outcome.data,
            },
        )


def format_table(parts: dict[str, dict[str, Any]]) -> str:
    """Parts, verdicts, seconds and figures as a Markdown table."""
    rows = [(name, record["verdict"], f"{record['seconds']:.0f}", record["figure"]) for name, record in parts.items()]
    header = ("part", "verdict", "seconds", "figure against goal")
    return "\n".join(compact_markdown_table(header, rows, numbers={"seconds"}))


def _earlier_parts(folder: Path) -> dict[str, Any]:
    """What a run of other parts left in ``folder``; what cannot be read is as good as none, it is written anew."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return dict(summary["parts"]) if summary["format"] == 2 else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
