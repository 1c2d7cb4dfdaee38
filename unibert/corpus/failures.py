"""What becomes of a task that fails: its cause as text, and one sentence for all tasks that failed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from unibert.errors import TransientError, UserError, short_message
from unibert.files import DISK_FULL

Task = TypeVar("Task")
Result = TypeVar("Result")

_LISTED_FAILURES = 3


@dataclass(frozen=True)
class Failure:
    """Why a task has no result; unlike an exception of any library, it reaches other processes."""

    cause: str
    is_sentence: bool = False
    """Whether the cause is a `UserError`'s sentence, which names the file itself."""
    may_pass: bool = True
    """Whether another try may succeed."""
    disk_error: int | None = None
    """Number of the error if the disk is full."""


KILLED = Failure(
    "its process was killed, also when no other worked beside it, probably because memory ran out", may_pass=False
)


def attempt(function: Callable[[Task], Result], task: Task) -> Result | Failure:
    """Return the function's result, or why there is none."""
    try:
        return function(task)
    except UserError as error:
        return Failure(str(error), is_sentence=True, may_pass=isinstance(error, TransientError))
    except Exception as error:  # of any library, or a mistake in this program
        is_full = isinstance(error, OSError) and error.errno in DISK_FULL
        frame = traceback.extract_tb(error.__traceback__)[-1]
        cause = f"{type(error).__name__}: {short_message(error)}, {Path(frame.filename).name}, line {frame.lineno}"
        return Failure(cause, disk_error=error.errno if is_full else None)  # type: ignore[attr-defined]


def cause(name: str, failure: Failure) -> str:
    """Return why a task of that name failed, for people."""
    return failure.cause if failure.is_sentence else f"{name} ({failure.cause})"


def failed_tasks(title: str, number: int, causes: Sequence[str]) -> UserError:
    """Return the error that reports why tasks, of a ``number``, failed: one cause for each."""
    if number == 1:
        return UserError(causes[0])
    distinct = list(dict.fromkeys(causes))
    more = len(distinct) - _LISTED_FAILURES
    return UserError(
        f"{title}: {len(causes):,} of {number:,} units failed, which the same command does again: "
        f"{'; '.join(distinct[:_LISTED_FAILURES])}{f'; and {more:,} more' if more > 0 else ''}"
    )
