"""What a part of ``unibert bench gpu`` is given, and what it has to say in the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from unibert.bench.gpu.timed_command import Ended, run_command, running

Verdict = Literal["ok", "FAILED", "not run"]
MACHINE = {False: {"TRITON_INTERPRET": "0"}, True: {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}}
"""Environment of the commands, by whether it is a rehearsal."""


@dataclass(frozen=True)
class Outcome:
    """The result of a part."""

    verdict: Verdict
    figure: str
    """One line: what was found against what was wanted, or why there is nothing."""
    details: str = ""
    """More lines to print."""
    data: Any = None
    """For summary.json."""

    @classmethod
    def of(cls, ok: bool, figure: str, details: str = "", data: Any = None) -> Outcome:
        """Of a part that ran."""
        return cls("ok" if ok else "FAILED", figure, details, data)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A part's turn: where its results go and when it ends."""

    folder: Path
    end: float
    """By `time.monotonic`."""
    log: TextIO
    """Gets every line of every command."""
    rehearsal: bool = False
    """On a CPU with the interpreter, at sizes that stand in for the real ones."""

    @property
    def seconds(self) -> float:
        """What is left."""
        return max(0.0, self.end - time.monotonic())

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsal else "cuda"

    def python(
        self, *words: object, seconds: float = float("inf"), shown: Callable[[str], bool] = lambda line: True
    ) -> Ended:
        """Run this Python with ``words``, for no longer than the turn; print the lines that ``shown`` takes."""
        return self.run([sys.executable, *map(str, words)], seconds, shown)

    def run(
        self, command: Sequence[str], seconds: float = float("inf"), shown: Callable[[str], bool] = lambda line: True
    ) -> Ended:
        """Run any command as `python` does."""

        def heard(line: str) -> None:
            self.log.write(f"{line}\n")
            self.log.flush()
            if shown(line):
                print(f"  {line}", flush=True)

        return run_command(command, min(seconds, self.seconds), heard=heard, **self._variables)

    @contextmanager
    def warming(self, preset: str) -> Iterator[None]:
        """Compile in the background what ``unibert bench kernels`` will run with ``preset``."""
        words = ["--preset", "rehearsal" if self.rehearsal else preset, "--device", self.device]
        command = [sys.executable, "-m", "unibert.bench.losses.warmup", *words]
        # After what runs in the foreground.
        with running(["nice", "-n", "10", *command], **self._variables) as output:
            yield
            output.seek(0)
            self.log.write(f"compiled beside it:\n{output.read()}")

    @property
    def _variables(self) -> dict[str, str]:
        return MACHINE[self.rehearsal] | {"PYTHONUNBUFFERED": "1"}
