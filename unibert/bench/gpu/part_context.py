"""The context in which a part of ``unibert bench gpu`` runs, and its outcome."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from unibert.bench.gpu.timed_command import CompletedCommand, run_command, running

Verdict = Literal["ok", "FAILED", "not run"]
ENVIRONMENTS = {False: {"TRITON_INTERPRET": "0"}, True: {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}}
"""Environment variables of the commands, by whether it is a rehearsal."""


@dataclass(frozen=True)
class Outcome:
    """The result of a part."""

    verdict: Verdict
    figure: str
    """One line: the figure measured and its goal, or the reason why there is none."""
    details: str = ""
    """More lines to print."""
    data: Any = None
    """Content of ``data`` in summary.json."""

    @classmethod
    def of(cls, ok: bool, figure: str, details: str = "", data: Any = None) -> Outcome:
        """Outcome of a part that ran."""
        return cls("ok" if ok else "FAILED", figure, details, data)


@dataclass(frozen=True, kw_only=True)
class PartContext:
    """Where the results of a part go, when the part ends, and how it runs commands."""

    folder: Path
    end: float
    """Deadline by `time.monotonic`."""
    log: TextIO
    """File for every line of every command."""
    rehearsal: bool = False
    """Whether to run on a CPU with the interpreter, at sizes that stand in for the real ones."""

    @property
    def seconds(self) -> float:
        """Seconds left."""
        return max(0.0, self.end - time.monotonic())

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsal else "cuda"

    def python(
        self, *arguments: object, seconds: float = float("inf"), show: Callable[[str], bool] = lambda line: True
    ) -> CompletedCommand:
        """Run this Python with ``arguments``, at most until the deadline; print the lines that ``show`` accepts."""
        return self.run([sys.executable, *map(str, arguments)], seconds, show)

    def run(
        self, command: Sequence[str], seconds: float = float("inf"), show: Callable[[str], bool] = lambda line: True
    ) -> CompletedCommand:
        """Run any command as `python` does."""

        def on_line(line: str) -> None:
            self.log.write(f"{line}\n")
            self.log.flush()
            if show(line):
                print(f"  {line}", flush=True)

        return run_command(command, min(seconds, self.seconds), on_line=on_line, **self._environment)

    @contextmanager
    def compiling_in_background(self, preset: str) -> Iterator[None]:
        """Compile in the background what ``unibert bench kernels`` will run with ``preset``."""
        arguments = ["--preset", "rehearsal" if self.rehearsal else preset, "--device", self.device]
        command = [sys.executable, "-m", "unibert.bench.losses.warmup", *arguments]
        # At a lower priority than the foreground command.
        with running(["nice", "-n", "10", *command], **self._environment) as output:
            yield
            output.seek(0)
            self.log.write(f"compiled in the background:\n{output.read()}")

    @property
    def _environment(self) -> dict[str, str]:
        return ENVIRONMENTS[self.rehearsal] | {"PYTHONUNBUFFERED": "1"}
