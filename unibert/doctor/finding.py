"""The lines of the doctor's report, and commands and calls with a time limit."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

Result = TypeVar("Result")

_JOB_PREFIXES = ("SLURM_", "SRUN_", "PMI_", "PMIX_", "OMPI_", "PRTE_")
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_CLUSTER_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS")


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    mark: Literal["ok", "warn", "FAIL"]
    subject: str
    message: str
    fix: str = ""
    """How to fix it; empty if nothing is wrong."""


def ok(subject: str, message: str) -> Finding:
    """Nothing is wrong."""
    return Finding("ok", subject, message)


def warn(subject: str, message: str, fix: str) -> Finding:
    """A problem for some uses only."""
    return Finding("warn", subject, message, fix)


def fail(subject: str, message: str, fix: str) -> Finding:
    """A problem that keeps UniBERT from running."""
    return Finding("FAIL", subject, message, fix)


@dataclass(frozen=True)
class CommandResult:
    """Exit status and output of a command."""

    status: int | None
    """None if the command could not be started or exceeded its time limit."""
    output: str
    """Standard output and standard error together, or why there is none."""

    @property
    def reason(self) -> str:
        """The line that best explains a failure: the last exception, else the last line."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        exceptions = [line for line in lines if re.search(r"\w(?:Error|Exception)\b.*:", line)]
        return (exceptions or lines or ["no output"])[-1]


def run_command(command: Sequence[str], seconds: float, **environment: str) -> CommandResult:
    """Run a command with the environment of no job; after ``seconds``, kill it and all that it started."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in _CLUSTER_VARIABLES or not (name in _RANK_VARIABLES or name.startswith(_JOB_PREFIXES))
    }
    try:
        process = subprocess.Popen(
            command,
            env=inherited | environment,
            text=True,
            errors="replace",
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        return CommandResult(None, f"{command[0]}: {error.strerror}")
    try:
        output, _ = process.communicate(timeout=seconds)
        return CommandResult(process.returncode, output)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return CommandResult(None, f"no answer in {seconds:g} s")


def call_with_timeout(seconds: float, function: Callable[[], Result]) -> Result:
    """Return the result of ``function``, which uses a file system that may never answer.

    Raises:
        TimeoutError: after ``seconds``; the thread of the call goes on.
    """
    results: queue.SimpleQueue[tuple[bool, Result | BaseException]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((True, function()))
        except BaseException as error:
            results.put((False, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        succeeded, result = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:g} s") from None
    if isinstance(result, BaseException) and not succeeded:
        raise result
    return cast("Result", result)
