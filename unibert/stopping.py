"""Ends of commands that a signal has asked to stop and that the same command continues."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STOPPED = 75


class _Stopped(BaseException):
    """A signal has asked to stop."""


@contextmanager
def stopped_by_signals(what: str) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGUSR1 end the process with one sentence and status 75, after the block's clean-up.

    ``what`` is named in the sentence. A second signal has its default effect. To be called by the main thread.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _Stopped

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    except _Stopped:
        print(f"unibert: {what} has stopped; the same command goes on", file=sys.stderr, flush=True)
        sys.exit(EXIT_STOPPED)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
