"""``history.jsonl``, in which a run records each start and how it ended."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from unibert.errors import UserError, short_message
from unibert.schedules import Timeline
from unibert.training.checkpoint.claim import Claim
from unibert.training.ranks.signals import Preempted

NAME = "history.jsonl"

Outcome = Literal["finished", "stopped", "failed"]
"""How a start ended: with the last step, after a signal, or with an error. A killed one records nothing."""

Event = dict[str, Any]


class RunHistory:
    """Records the start that the block makes, and how it ends, once it has claimed the run folder."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._claim: Claim | None = None

    def begin(self, run_dir: Path, claim: Claim, timeline: Timeline) -> None:
        """Record that this start has claimed the run folder. Only rank 0 calls this, and so only it writes.

        Raises:
            UserError: if the file cannot be written.
        """
        self._path, self._claim = run_dir / NAME, claim
        place = {"host": socket.gethostname(), "pid": os.getpid(), "pid_namespace": pid_namespace()}
        length = {"num_steps": len(timeline), "num_tokens": timeline.total_tokens}
        try:
            self._append({"event": "start", **place, **length})
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror}); choose another run_dir") from error

    def __enter__(self) -> RunHistory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._claim is None:
            return
        # Where this cannot be written, the error itself matters more; if a later start goes on, its events count.
        with suppress(UserError, OSError):
            self._claim.raise_if_superseded()
            self._append({"event": "end", **_outcome(error)})

    def _append(self, event: Event) -> None:
        assert self._path is not None
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")


def _outcome(error: BaseException | None) -> Event:
    outcome: Outcome = "finished" if error is None else "stopped" if isinstance(error, Preempted) else "failed"
    if error is None:
        return {"outcome": outcome}
    explained = isinstance(error, UserError | Preempted)
    return {
        "outcome": outcome,
        "message": str(error) if explained else f"{type(error).__name__}: {short_message(error)}",
    }


def read_history(run_dir: Path) -> list[Event]:
    """Read the events of a run folder, oldest first; none of a run that has no such file. Damaged lines are left out.

    Raises:
        OSError: if the file cannot be read.
    """
    path, events = run_dir / NAME, []
    if not path.is_file():
        return []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, TypeError, KeyError):
            event = json.loads(line)
            float(event["time"])
            events.append(event)
    return events


def pid_namespace() -> str | None:
    """Return the namespace in which this process has its id: containers on one host have their own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None
