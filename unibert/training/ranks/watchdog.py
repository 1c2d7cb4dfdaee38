"""A watchdog: if a rank hangs, the others end with a sentence that names it instead of waiting for ever.

A thread of each rank publishes two things every few seconds in the store at which the ranks met: how many collectives
the rank has begun, and the line at which its main thread stands. A rank that makes no progress for the whole time-out
reads what the others have published, prints which rank is late, and ends its process; the launcher then ends the rest.

If a rank dies and the collective in which the others wait does not notice, its lifeline reports it within seconds.

A rank that alone meets a user's mistake sets a flag in the store. All ranks then end with the status of a mistake,
after which no launcher starts them again.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from unibert.errors import LostRanksError, RankError, UserError
from unibert.training.ranks.collective_counter import counter
from unibert.training.ranks.failures import EXIT_LOST_RANKS, EXIT_MISTAKE
from unibert.training.ranks.lifelines import Lifelines
from unibert.training.ranks.signals import Preempted

_PACKAGE = Path(__file__).parents[2]
_COLLECTIVE_MODULES = tuple(
    str(Path(__file__).with_name(name)) for name in ("collectives.py", "collective_counter.py", "watchdog.py")
)
_CHECKS_PER_TIMEOUT = 20
"""Checks of this rank's progress within one time-out."""

_MAX_INTERVAL = 10.0
"""Maximum number of seconds between two checks, and between two heartbeats."""

_MIN_WAIT = 5.0
"""Minimum number of seconds that another process gets to answer or to print, however short the time-out."""

_MISTAKE = "watchdog/mistake"
_MISTAKE_INTERVAL = 1.0
"""Seconds between two polls for the mistake of another rank."""


@contextmanager
def watched(rank: int, world_size: int, timeout: timedelta) -> Iterator[None]:
    """Watch the ranks, which must all have joined, while the context lasts.

    Args:
        rank: rank of this process.
        world_size: number of ranks. A single rank is not watched.
        timeout: how long no collective may begin or end.
    """
    if world_size == 1:
        yield
        return
    watchdog = _Watchdog(rank, world_size, timeout.total_seconds())
    try:
        yield
        watchdog.lifelines.close()
    except LostRanksError:
        watchdog.wait_for_mistake()
        raise
    except RankError:
        watchdog.publish_mistake()
        watchdog.lifelines.close()
        raise
    except (UserError, Preempted):
        # All ranks raise these together.
        watchdog.lifelines.close()
        raise
    finally:
        watchdog.ended.set()


class _Watchdog:
    def __init__(self, rank: int, world_size: int, timeout: float) -> None:
        self.ended = threading.Event()
        self.mistake = threading.Event()
        self._timed_out = threading.Event()
        self._rank, self._timeout = rank, timeout
        self._interval = min(timeout / _CHECKS_PER_TIMEOUT, _MAX_INTERVAL)
        self._main_thread = threading.main_thread().ident
        # A connection of its own: the process group's is locked while a rank waits in it.
        default_store: Any = dist.distributed_c10d._get_default_store()
        self._store = default_store.clone()
        self._keys = [f"watchdog/{other}" for other in range(world_size)]
        self._hosts: list[Any] = [None] * world_size
        # Every key is set before any rank reads it, which the all-gather ensures.
        self._publish_progress(0)
        self.lifelines = Lifelines(rank, world_size, self._store)
        dist.all_gather_object(self._hosts, socket.gethostname())
        # Several threads, because the store lives in rank 0, and publishing blocks if that rank hangs.
        for work in (self._send_heartbeats, self._watch_progress, self._poll_for_mistake, self._watch_lifelines):
            threading.Thread(target=work, name=f"unibert{work.__name__}", daemon=True).start()

    def publish_mistake(self) -> None:
        """Make the other ranks end as after a mistake of their own."""
        self.ended.set()
        try:
            self._store.set(_MISTAKE, "")
        except RuntimeError:
            return
        # They poll the store, which ends with rank 0.
        time.sleep(2 * _MISTAKE_INTERVAL)

    def wait_for_mistake(self) -> None:
        """If another rank has published a mistake, leave the end of this process to the thread that polls for it.

        Called by a rank that finds others gone.
        """
        if self.mistake.wait(_MISTAKE_INTERVAL):
            time.sleep(_MIN_WAIT)

    def _send_heartbeats(self) -> None:
        heartbeat = 0
        while not self.ended.wait(self._interval):
            heartbeat += 1
            try:
                self._publish_progress(heartbeat)
            except RuntimeError:
                # The store is gone with rank 0. The watching thread or the next collective will notice.
                return

    def _publish_progress(self, heartbeat: int) -> None:
        self._store.set(self._keys[self._rank], json.dumps([heartbeat, counter.begun, self._current_line()]))

    def _read_progress(self) -> list[list[Any]]:
        return [json.loads(value) for value in self._store.multi_get(self._keys)]

    def _current_line(self) -> str:
        """The line of this package at which the main thread stands; in a collective, the line that called it."""
        frame = sys._current_frames().get(self._main_thread or 0)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(str(_PACKAGE)) and file not in _COLLECTIVE_MODULES:
                return f"{frame.f_code.co_name} ({Path(file).relative_to(_PACKAGE.parent)}:{frame.f_lineno})"
            frame = frame.f_back
        return "Python"

    def _poll_for_mistake(self) -> None:
        while not self.ended.wait(_MISTAKE_INTERVAL):
            try:
                published = self._store.check([_MISTAKE])
            except RuntimeError:
                return
            if published:
                self.mistake.set()
                # The rank that has met it prints it and ends first.
                time.sleep(_MIN_WAIT - _MISTAKE_INTERVAL)
                os._exit(EXIT_MISTAKE)

    def _watch_lifelines(self) -> None:
        lost = self.lifelines.wait_for_lost_rank()
        # Usually the main thread notices in its collective, or the end belongs to a mistake or a time-out.
        if lost is None or self.ended.wait(_MIN_WAIT) or self.mistake.is_set() or self._timed_out.is_set():
            return
        if self._rank == (1 if lost == 0 else 0):
            print(
                f"unibert: error: rank {lost} ({self._hosts[lost]}) has ended; its own message says why, or the "
                "system log if it was killed; the same command continues from the newest checkpoint",
                file=sys.stderr,
                flush=True,
            )
        os._exit(EXIT_LOST_RANKS)

    def _watch_progress(self) -> None:
        # Intervals are counted instead of reading a clock, so that a job that was suspended as a whole does not count
        # as hung when it wakes up.
        idle, last = 0.0, (0, 0)
        while not self.ended.wait(self._interval):
            now = (counter.begun, counter.done)
            idle, last = (0.0 if now != last else idle + self._interval), now
            if idle >= self._timeout:
                self._end_after_timeout()

    def _end_after_timeout(self) -> None:
        self._timed_out.set()
        reports: list[str] = []
        diagnosis = threading.Thread(target=self._diagnose, args=(reports,), daemon=True)
        diagnosis.start()
        diagnosis.join(4 * self._interval + _MIN_WAIT)
        if not reports:
            # Without the store, the ranks cannot choose one that prints; the first to end ends the others.
            self.ended.wait(min(self._rank, 20) / 4)
            reports = [f"rank 0 ({self._hosts[0]}), which holds the ranks' store, does not respond"]
        if reports[0]:
            print(
                f"unibert: error: no collective has ended for {self._timeout:g} s: {reports[0]}; the same command "
                "continues from the newest checkpoint",
                file=sys.stderr,
                flush=True,
            )
        os._exit(EXIT_LOST_RANKS)

    def _diagnose(self, reports: list[str]) -> None:
        """Append the late ranks on one rank and "" on all others. Append nothing if the store is unreachable."""
        try:
            if self._store.add("watchdog/diagnoses", 1) == 1:
                before = self._read_progress()
                self.ended.wait(2.5 * self._interval)
                reports.append(self._late_ranks(before, self._read_progress()))
            else:
                self.ended.wait(2.5 * self._interval + _MIN_WAIT / 2)
                reports.append("")
        except RuntimeError:
            return

    def _late_ranks(self, before: list[list[Any]], after: list[list[Any]]) -> str:
        names = [f"rank {rank} ({host})" for rank, host in enumerate(self._hosts)]
        furthest = max(begun for _, begun, _ in after)
        late = []
        for name, (heartbeat, _, _), (next_heartbeat, begun, line) in zip(names, before, after, strict=True):
            if heartbeat == next_heartbeat:
                late.append(f"{name} does not respond, last seen in {line}")
            elif begun < furthest:
                late.append(f"{name} is {furthest - begun} collectives behind, in {line}")
        if not late:
            lines = sorted({f"{name} in {line}" for name, (_, _, line) in zip(names, after, strict=True)})
            return f"no rank is late, the collective itself hangs: {', '.join(lines[:8])}"
        others = len(names) - len(late)
        return f"{', '.join(late[:8])}{', …' if len(late) > 8 else ''}; the other {others} wait"
