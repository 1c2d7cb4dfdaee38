"""What a run is doing or how it ended, from files in its folder alone, which are only read."""

from __future__ import annotations

import os
import socket
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unibert.configuration import read_yaml
from unibert.errors import UserError
from unibert.schedules import Timeline
from unibert.text import duration
from unibert.training.checkpoint.folder import DESCRIPTION, complete_checkpoints, step_of
from unibert.training.metrics_file import GrowingMetrics
from unibert.training.run_history import NAME as HISTORY
from unibert.training.run_history import Event, pid_namespace, read_history

State = Literal["running", "silent", "gone", "stopped", "failed", "finished"]
"""``gone``: its process ended without recording how; ``silent``: it may run, but has written nothing for long."""

SILENT_AFTER = 120.0
"""Seconds without a line after which a run counts as silent; more if its lines are far apart."""
_SILENT_AFTER_LINES = 5


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run at one moment."""

    name: str
    state: State
    sentence: str
    """The state in words."""
    step: int
    """The last step that was logged."""
    num_steps: int
    tokens: int
    """Tokens up to that step."""
    num_tokens: int
    """Length of the run."""
    seconds_to_go: float | None
    """Time that the remaining tokens need; None if nothing was logged yet or the run has ended."""
    metrics: GrowingMetrics
    checkpoint: tuple[int, float] | None
    """Step of the newest complete checkpoint, and its age in seconds."""
    left_out_steps: int
    starts: int
    """How often the run was started; 0 if it has no record of its starts."""

    @property
    def has_ended(self) -> bool:
        """Whether no more is to come before somebody starts the run again."""
        return self.state not in ("running", "silent")


class RunWatch:
    """Reads the status of one run again and again, and only what is new in its metrics.

    Args:
        run_dir: the run folder.

    Raises:
        UserError: if it is not a run folder.
    """

    def __init__(self, run_dir: Path) -> None:
        if not (run_dir / "config.yaml").is_file():
            raise UserError(f"{run_dir} is not a run folder (it has no config.yaml)")
        self._run_dir = run_dir
        self._metrics = GrowingMetrics(run_dir / "metrics.jsonl")

    def status(self) -> RunStatus:
        """Return the status now.

        Raises:
            UserError: if a file of the run cannot be read.
        """
        try:
            return self._status()
        except OSError as error:
            raise UserError(f"{error.filename or self._run_dir}: cannot be read ({error.strerror})") from error

    def _status(self) -> RunStatus:
        history = read_history(self._run_dir)
        num_steps, num_tokens = self._length(history)
        self._metrics.read()
        last = self._metrics.training
        checkpoints = complete_checkpoints(self._run_dir / "checkpoints")
        ages = [_age(self._run_dir / name) for name in ("metrics.jsonl", HISTORY, "config.yaml")]
        checkpoint_age = _age(checkpoints[-1] / DESCRIPTION) if checkpoints else None
        silence = min(age for age in (*ages, checkpoint_age) if age is not None)
        rate = statistics.median(self._metrics.rates) if self._metrics.rates else None
        step, tokens = last.get("step", 0), last.get("tokens", 0)
        state, sentence = _state(history, silence, self._silent_after(rate), is_complete=step == num_steps)
        return RunStatus(
            name=self._run_dir.resolve().name,
            state=state,
            sentence=sentence,
            step=step,
            num_steps=num_steps,
            tokens=tokens,
            num_tokens=num_tokens,
            seconds_to_go=(num_tokens - tokens) / rate if rate and state in ("running", "silent") else None,
            metrics=self._metrics,
            checkpoint=None if checkpoint_age is None else (step_of(checkpoints[-1]), checkpoint_age),
            left_out_steps=sum(last.get("left_out_steps", {}).values()),
            starts=sum(event["event"] == "start" for event in history),
        )

    def _length(self, history: list[Event]) -> tuple[int, int]:
        """Steps and tokens of the run."""
        if starts := [event for event in history if event["event"] == "start"]:
            return starts[-1]["num_steps"], starts[-1]["num_tokens"]
        # The run is older than histories.
        training = read_yaml(self._run_dir / "config.yaml")["training"]
        timeline = Timeline(*(_points(training[key]) for key in ("tokens", "global_batch_size", "sequence_length")))
        return len(timeline), timeline.total_tokens

    def _silent_after(self, rate: float | None) -> float:
        last = self._metrics.training
        if not last or not rate:
            return SILENT_AFTER
        between = last["tokens"] / len(self._metrics.losses) / rate
        return max(SILENT_AFTER, _SILENT_AFTER_LINES * between)


def _points(value: Any) -> Any:
    return [tuple(point) for point in value] if isinstance(value, list) else value


def _age(path: Path) -> float | None:
    """Seconds since a file was written; None if there is none."""
    try:
        # The clocks of two machines may differ a little.
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None


def _state(history: list[Event], silence: float, limit: float, *, is_complete: bool) -> tuple[State, str]:
    last: Event = history[-1] if history else {"event": "none"}
    if last["event"] == "end":
        when = f"{duration(max(0.0, time.time() - last['time']))} ago"
        message = last.get("message", "")
        if last["outcome"] == "finished":
            return "finished", f"finished {when}"
        if last["outcome"] == "stopped":
            return "stopped", f"stopped {when}; the same command continues ({message})"
        return "failed", f"ended with an error {when}: {message}"
    if last["event"] == "none" and is_complete:
        return "finished", "finished"
    place = f" as process {last['pid']} on {last['host']}" if last["event"] == "start" else ""
    if last["event"] == "start" and _is_gone(last):
        return "gone", f"ended without a word{place}: it was killed, by a person, a scheduler or for lack of memory"
    if silence > limit:
        return "silent", f"silent{place}: it has written nothing for {duration(silence)}"
    return "running", f"running{place}"


def _is_gone(start: Event) -> bool:
    """Whether the process of a start has ended, as far as one can tell from here."""
    if (start["host"], start["pid_namespace"]) != (socket.gethostname(), pid_namespace()):
        return False
    try:
        os.kill(start["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
