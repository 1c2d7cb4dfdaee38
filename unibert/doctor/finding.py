"""A line of the doctor's report, and questions that are given up when no answer comes."""

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
from typing import Literal, ParamSpec, TypeVar, cast

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

_OF_A_JOB = ("SLURM_", "SRUN_", "PMI_", "PMIX_", "OMPI_", "PRTE_")
_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    mark: Literal["ok", "warn", "FAIL"]
    subject: str
    found: str
    fix: str = ""
    """What to do about it; empty where all is well."""


def ok(subject: str, found: str) -> Finding:
    """All is well."""
    return Finding("ok", subject, found)


def warn(subject: str, found: str, fix: str) -> Finding:
    """Something that only some uses stumble over."""
    return Finding("warn", subject, found, fix)


def fail(subject: str, found: str, fix: str) -> Finding:
    """Something with which UniBERT does not run."""
    return Finding("FAIL", subject, found, fix)


@dataclass(frozen=True)
class Answer:
    """What a command gave."""

    status: int | None
    """None where it could not be started or was given up."""
    output: str
    """Of standard output and standard error together; else why it could not be started."""

    @property
    def reason(self) -> str:
        """The line that says most about a failure: the last exception, else the last line."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        exceptions = [line for line in lines if re.search(r"\w(?:Error|Exception)\b.*:", line)]
        return (exceptions or lines or ["nothing was said"])[-1]


def ask(command: Sequence[str], seconds: float, **environment: str) -> Answer:
    """Run a command as outside of any job, with all that it starts, for at most ``seconds``."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _OF_THE_CLUSTER or not (name in _OF_A_RANK or name.startswith(_OF_A_JOB))
    }
    try:
        process = subprocess.Popen(
            command,
            env=kept | environment,
            text=True,
            errors="replace",
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        return Answer(None, f"{command[0]}: {error.strerror}")
    try:
        output, _ = process.communicate(timeout=seconds)
        return Answer(process.returncode, output)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return Answer(None, f"no answer in {seconds:g} s")


def within(
    seconds: float, look: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
) -> Result:
    """What ``look`` returns; for file systems, where a call may never come back.

    Raises:
        TimeoutError: after ``seconds``; its thread is left behind.
    """
    answers: queue.SimpleQueue[tuple[bool, Result | BaseException]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((True, look(*arguments, **options)))
        except BaseException as error:
            answers.put((False, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        done, answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:g} s") from None
    if isinstance(answer, BaseException) and not done:
        raise answer
    return cast("Result", answer)
