"""A watchdog: where a rank hangs, the others end with a sentence that names it instead of waiting for ever.

Each rank tells the others in the store at which they met, every few seconds and from a thread of its own, to how many
of our collectives it has come and where its main thread stands. A rank that gets no further for the whole of the
time-out reads what the others tell, prints who is late, and ends its process; a launcher then ends the rest.

A rank that dies is noticed within seconds by its lifeline, should the collective in which the others are not notice it.

A rank that has met a user's mistake alone says so in the store, and all end with the status of a mistake, which no
launcher starts again.
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
from unibert.training.ranks.failures import EXIT_LOST_RANKS, EXIT_MISTAKE
from unibert.training.ranks.lifelines import Lifelines
from unibert.training.ranks.signals import Preempted

_PACKAGE = Path(__file__).parents[2]
_WAITING = tuple(str(Path(__file__).with_name(name)) for name in ("collectives.py", "watchdog.py"))
_TICKS = 20
"""Looks at the main thread within one time-out."""

_MAX_TICK = 10.0
"""Seconds between two signs of life, at most."""

_MIN_WAIT = 5.0
"""Seconds that another process gets at least to answer or to print, however short the time-out."""

_MISTAKE = "watchdog/mistake"
_MISTAKE_TICK = 1.0
"""Seconds between two looks for a mistake of another rank."""


class Collectives:
    """Counts this process's collectives, which are the same on all ranks."""

    def __init__(self) -> None:
        self.begun = 0
        self.done = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around one collective, or one micro-batch, in which there may be many."""
        self.begun += 1
        yield
        self.done += 1


collectives = Collectives()


@contextmanager
def watched(rank: int, world_size: int, timeout: timedelta) -> Iterator[None]:
    """Watch over the ranks, which must all have joined, for as long as the context lasts.

    Args:
        rank: of this process.
        world_size: with one rank there is nothing to watch.
        timeout: how long no collective may begin or end.
    """
    if world_size == 1:
        yield
        return
    watchdog = _Watchdog(rank, world_size, timeout.total_seconds())
    try:
        yield
        watchdog.lifelines.farewell()
    except LostRanksError:
        watchdog.wait_for_mistake()
        raise
    except RankError:
        watchdog.tell_mistake()
        watchdog.lifelines.farewell()
        raise
    except (UserError, Preempted):
        # Of all ranks together.
        watchdog.lifelines.farewell()
        raise
    finally:
        watchdog.ended.set()


class _Watchdog:
    def __init__(self, rank: int, world_size: int, timeout: float) -> None:
        self.ended = threading.Event()
        self.mistake = threading.Event()
        self._timed_out = threading.Event()
        self._rank, self._timeout = rank, timeout
        self._tick = min(timeout / _TICKS, _MAX_TICK)
        self._main = threading.main_thread().ident
        # A connection of its own: the process group's is locked while a rank waits in it. Its first word from every
        # rank comes before anyone reads.
        met: Any = dist.distributed_c10d._get_default_store()
        self._store = met.clone()
        self._keys = [f"watchdog/{other}" for other in range(world_size)]
        self._hosts: list[Any] = [None] * world_size
        self._tell(0)
        self.lifelines = Lifelines(rank, world_size, self._store)
        dist.all_gather_object(self._hosts, socket.gethostname())
        # Several threads, for the store is with rank 0 and telling blocks where that one hangs.
        for work in (self._tell_on, self._watch, self._heed, self._notice_death):
            threading.Thread(target=work, name=f"unibert{work.__name__}", daemon=True).start()

    def _tell_on(self) -> None:
        beat = 0
        while not self.ended.wait(self._tick):
            beat += 1
            try:
                self._tell(beat)
            except RuntimeError:
                # The store is gone with rank 0, which the watching thread or the next collective finds out.
                return

    def tell_mistake(self) -> None:
        """Have the others end as after a mistake of their own."""
        self.ended.set()
        try:
            self._store.set(_MISTAKE, "")
        except RuntimeError:
            return
        # They look for it in the store, which ends with rank 0.
        time.sleep(2 * _MISTAKE_TICK)

    def wait_for_mistake(self) -> None:
        """Of a rank that finds others gone: leave the end to the thread that looks for a mistake, if there is one."""
        if self.mistake.wait(_MISTAKE_TICK):
            time.sleep(_MIN_WAIT)

    def _heed(self) -> None:
        while not self.ended.wait(_MISTAKE_TICK):
            try:
                found = self._store.check([_MISTAKE])
            except RuntimeError:
                return
            if found:
                self.mistake.set()
                # The rank that has met it is to print it and to end first.
                time.sleep(_MIN_WAIT - _MISTAKE_TICK)
                os._exit(EXIT_MISTAKE)

    def _notice_death(self) -> None:
        lost = self.lifelines.lost_rank()
        # Most often the main thread finds it out in its collective, or it is the end of a mistake or a time-out.
        if lost is None or self.ended.wait(_MIN_WAIT) or self.mistake.is_set() or self._timed_out.is_set():
            return
        if self._rank == (1 if lost == 0 else 0):
            print(
                f"unibert: error: rank {lost} ({self._hosts[lost]}) has ended; it says why, or its machine or the "
                "system killed it; the same command continues",
                file=sys.stderr,
                flush=True,
            )
        os._exit(EXIT_LOST_RANKS)

    def _tell(self, beat: int) -> None:
        self._store.set(self._keys[self._rank], json.dumps([beat, collectives.begun, self._place()]))

    def _place(self) -> str:
        """The line of this package in which the main thread stands, a collective's caller's for a collective."""
        frame = sys._current_frames().get(self._main or 0)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(str(_PACKAGE)) and file not in _WAITING:
                return f"{frame.f_code.co_name} ({Path(file).relative_to(_PACKAGE.parent)}:{frame.f_lineno})"
            frame = frame.f_back
        return "Python"

    def _watch(self) -> None:
        # Ticks are counted instead of looking at a clock, so that a job that was suspended as a whole is not a hung
        # one when it wakes up.
        idle, seen = 0.0, (0, 0)
        while not self.ended.wait(self._tick):
            now = (collectives.begun, collectives.done)
            idle, seen = (0.0 if now != seen else idle + self._tick), now
            if idle >= self._timeout:
                self._end()

    def _end(self) -> None:
        self._timed_out.set()
        findings: list[str] = []
        asking = threading.Thread(target=self._ask, args=(findings,), daemon=True)
        asking.start()
        asking.join(4 * self._tick + _MIN_WAIT)
        if not findings:
            # Without the store nobody can be appointed to speak; the first to end ends the others.
            self.ended.wait(min(self._rank, 20) / 4)
            findings = [f"rank 0 ({self._hosts[0]}), which keeps the ranks' meeting point, gives no sign of life"]
        if findings[0]:
            print(
                f"unibert: error: no collective has ended for {self._timeout:g} s: {findings[0]}; the same command "
                "continues from the newest checkpoint",
                file=sys.stderr,
                flush=True,
            )
        os._exit(EXIT_LOST_RANKS)

    def _ask(self, findings: list[str]) -> None:
        """Append who is late, or nothing to say on all ranks but one; append nothing if the store is out of reach."""
        try:
            if self._store.add("watchdog/told", 1) == 1:
                before = self._read()
                self.ended.wait(2.5 * self._tick)
                findings.append(self._late(before, self._read()))
            else:
                self.ended.wait(2.5 * self._tick + _MIN_WAIT / 2)
                findings.append("")
        except RuntimeError:
            return

    def _read(self) -> list[list[Any]]:
        return [json.loads(value) for value in self._store.multi_get(self._keys)]

    def _late(self, before: list[list[Any]], after: list[list[Any]]) -> str:
        names = [f"rank {rank} ({host})" for rank, host in enumerate(self._hosts)]
        first = max(begun for _, begun, _ in after)
        late = []
        for name, (beat, _, _), (later_beat, begun, place) in zip(names, before, after, strict=True):
            if beat == later_beat:
                late.append(f"{name} gives no sign of life, last seen in {place}")
            elif begun < first:
                late.append(f"{name} is {first - begun} collectives behind, in {place}")
        if not late:
            places = sorted({f"{name} in {place}" for name, (_, _, place) in zip(names, after, strict=True)})
            return f"no rank is late, the exchange itself hangs: {', '.join(places[:8])}"
        others = len(names) - len(late)
        return f"{', '.join(late[:8])}{', …' if len(late) > 8 else ''}; the other {others} wait"
