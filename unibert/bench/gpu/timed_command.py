"""A command that gets so many seconds and no more; its lines are heard as they come."""

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
"""For the rest of the output, which a process that left the group may hold open for ever."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None
    """Exit status; None: it ran out of time."""
    text: str
    """Standard output and error, with a last line that says so if it ran out of time."""

    @property
    def last_line(self) -> str:
        return next((line for line in reversed(self.text.splitlines()) if line.strip()), "no output")[:300]


def run_command(
    command: Sequence[str], seconds: float, *, heard: Callable[[str], None] = lambda line: None, **variables: str
) -> Ended:
    """Run ``command``; whatever it started in its process group ends with it, or when the seconds are used up.

    ``variables`` join the environment. ``heard`` gets each line, without its end, from another thread.
    """
    # A session of its own, so that a launcher's ranks and a benchmark's workers end with it.
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
            heard(line.rstrip("\n"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        code: int | None = process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _kill_group(process)
        reader.join(SECONDS_TO_DRAIN)
    if code is None:
        lines.append(f"it ran out of time after {seconds:.0f} s\n")
    return Ended(code, "".join(lines))


@contextlib.contextmanager
def running(command: Sequence[str], **variables: str) -> Iterator[TextIO]:
    """``command`` in the background, killed at the end of the context; the file gets what it prints."""
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
