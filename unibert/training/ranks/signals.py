"""Signals that ask a run to end soon: remembered, and acted upon between steps."""

from __future__ import annotations

import signal
from types import FrameType

EXIT_PREEMPTED = 75
"""Exit status of a run that was asked to stop and can be continued (EX_TEMPFAIL)."""


class StopRequest:
    """Set by SIGTERM, SIGINT or SIGUSR1; a second signal of the kind has its usual effect."""

    def __init__(self) -> None:
        self.requested = False
        self.name = "a signal to another rank"
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.name = True, signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)


def leave_in_peace() -> None:
    """Ignore signals on the way out: srun sends SIGTERM to all when the first ends with a status other than 0."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class Preempted(Exception):
    """The run stopped after a checkpoint because a signal asked it to; the same command continues it."""
