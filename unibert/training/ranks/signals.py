"""Signals that ask a run to stop. They are recorded, and the run acts on them between steps."""

from __future__ import annotations

import signal
from types import FrameType

EXIT_PREEMPTED = 75
"""Exit status of a run that was asked to stop and can be continued (EX_TEMPFAIL)."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Records the first SIGTERM, SIGINT or SIGUSR1. A second signal of the same kind has its default effect."""

    def __init__(self) -> None:
        self.requested = False
        self.name = "a signal to another rank"
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.name = True, signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)


def ignore_stop_signals() -> None:
    """Ignore signals on the way out: srun sends SIGTERM to all ranks when the first ends with a status other than 0."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Preempted(Exception):
    """A signal has stopped the run after a checkpoint. The same command continues it."""
