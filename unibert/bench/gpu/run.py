"""``unibert bench gpu``: everything that needs a CUDA GPU, in two stages that fit into a quarter of an hour.

Each stage is one command with a time limit, six minutes for stage 1 and seven for stage 2. Each part has a budget and
may also use what earlier parts left of theirs; at its end the part's processes are killed, and the files that it wrote
stay. Optional parts come last, and run only while the stage has time left. A part that fails is recorded and does not
stop the next. A part that runs again replaces its earlier results.

The output folder receives a few files, each at the end of its part or earlier: ``summary.json``, which holds for each
part ``verdict`` (ok, FAILED, not run), ``seconds``, ``figure``, ``details`` and, where there is any, ``data``;
``stage-1.txt`` or ``stage-2.txt`` with everything that the parts printed; and the parts' own results.
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
from unibert.bench.gpu.part_context import Outcome, PartContext
from unibert.environment import describe_environment
from unibert.errors import UserError
from unibert.files import write_json
from unibert.text import compact_markdown_table

OVERHEAD_SECONDS = 16.0
"""Time to start Python and torch before the first part of a stage, and to finish after the last."""


@dataclass(frozen=True)
class Part:
    """One check or measurement."""

    name: str
    run: Callable[[PartContext], Outcome]
    budget: float
    """Seconds."""
    optional: bool = False
    """Whether the part has no reserved time in a stage, but uses what is left, up to its budget."""
    min_seconds: float = 0.0
    """Minimum seconds left for the part to start."""


@dataclass(frozen=True)
class Stage:
    """Parts that one command runs."""

    seconds: float
    """Time limit, `OVERHEAD_SECONDS` included."""
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
            Part("trainer", trainings.trainer, 75, optional=True, min_seconds=30),
            Part("checkpoints", trainings.checkpoints, 120, optional=True, min_seconds=75),
            Part("attention", times.attention, 100, optional=True, min_seconds=25),
        ),
    ),
}


@dataclass(kw_only=True)
class GpuBenchConfig:
    """Options of ``unibert bench gpu``."""

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
        """Stages to run, each with a name for its log and a time limit of its own."""
        if self.parts is not None:
            # A part that is named on the command line is not optional.
            parts = tuple(Part(name, PARTS[name].run, PARTS[name].budget) for name in self.parts)
            stages = {"parts": Stage(OVERHEAD_SECONDS + sum(part.budget for part in parts), parts)}
        else:
            stages = {f"stage-{number}": stage for number, stage in STAGES.items() if self.stage in (None, number)}
        if self.minutes is None:
            return list(stages.items())
        changed = []
        for name, stage in stages.items():
            parts = tuple(Part(part.name, part.run, 60 * self.minutes) for part in stage.parts)
            changed.append((name, Stage(OVERHEAD_SECONDS + 60 * self.minutes * len(parts), parts)))
        return changed


PARTS = {part.name: part for stage in STAGES.values() for part in stage.parts}


def bench_gpu(config: GpuBenchConfig) -> bool:
    """Run stages or parts, write each part's result when it ends, and print a table at the end.

    Returns:
        False if any part failed.

    Raises:
        UserError: if torch finds no CUDA GPU, or the output folder cannot be created.
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
        raise UserError(f"{folder}: cannot be created: {error.strerror}") from error
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
                # Removed first, so that parts are in the order in which they last ran.
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
    """Run the parts of a stage; yield the name and record of each when it ends."""
    end = started + stage.seconds - OVERHEAD_SECONDS
    reserved = sum(part.budget for part in stage.parts if not part.optional)
    for part in stage.parts:
        begun = time.monotonic()
        if part.optional:
            part_end = min(end, begun + part.budget)
        else:
            # Later parts keep their budgets; what earlier parts left goes to this one.
            reserved -= part.budget
            part_end = end - reserved
        left = part_end - begun
        heading = f"== {part.name}, at most {left:.0f} s"
        print(f"\n{heading}", flush=True)
        log.write(f"{heading}\n")
        if left < max(1.0, part.min_seconds):
            outcome = Outcome(
                "not run", f"{max(0.0, left):.0f} s were left, at least {part.min_seconds:.0f} are needed"
            )
        else:
            try:
                outcome = part.run(PartContext(folder=folder, end=part_end, log=log, rehearsal=rehearsal))
            except Exception as error:  # any error is recorded as the part's result
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
    """Results of other parts in ``folder`` from earlier runs; an unreadable summary counts as none and is replaced."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return dict(summary["parts"]) if summary["format"] == 2 else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
