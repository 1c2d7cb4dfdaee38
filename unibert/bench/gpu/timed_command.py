"""Run a command with a time limit and receive its lines as they are printed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

SECONDS_TO_DRAIN = 5.0
"""Time limit for reading the rest of the output, which a process outside the group may hold open forever."""


@dataclass(frozen=True)
class CompletedCommand:
    """Result of a command."""

    exit_code: int | None
    """Exit status, or None if it ran out of time."""
    output: str
    """Standard output and error; the last line says if it ran out of time."""

    @property
    def last_line(self) -> str:
        return next((line for line in reversed(self.output.splitlines()) if line.strip()), "no output")[:300]


def run_command(
    command: Sequence[str], seconds: float, *, on_line: Callable[[str], None] = lambda line: None, **variables: str
) -> CompletedCommand:
    """Run ``command``, and end its process group when it ends or when the seconds are over.

    ``variables`` are added to the environment. ``on_line`` receives each line, without the line break, in another
    thread.
    """
    # A process group of its own, so that a launcher's ranks and a benchmark's workers end with it.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=os.environ | variables,
        start_new_session=True,
    )
    assert process.stdout is not None
    stream, lines = process.stdout, []

    def read() -> None:
        for line in stream:
            lines.append(line)
            on_line(line.rstrip("\n"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        exit_code: int | None = process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        exit_code = None
    finally:
        _kill_group(process)
        reader.join(SECONDS_TO_DRAIN)
    if exit_code is None:
        lines.append(f"it ran out of time after {seconds:.0f} s\n")
    return CompletedCommand(exit_code, "".join(lines))


@contextlib.contextmanager
def running(command: Sequence[str], **variables: str) -> Iterator[TextIO]:
    """Run ``command`` in the background until the end of the context; yield the file with its output."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env=os.environ | variables,
            start_new_session=True,
        )
        try:
            yield output
        finally:
            _kill_group(process)


def _kill_group(process: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
