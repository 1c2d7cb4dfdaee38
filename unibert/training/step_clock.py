"""Where the time of steps goes on this rank."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Part = Literal["data", "forward", "backward", "update"]
"""``data`` is the wait for the next batch, ``update`` includes the gather of the weights, ``backward`` the reduction of
the gradient, where DeepSpeed makes it there."""


class StepClock:
    """Sums the seconds of each part of the steps between two log lines.

    On a GPU the device's time is measured by events, which are read at the log line; waiting for data is the host's.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._start_anew()

    @contextmanager
    def measures(self, part: Part) -> Iterator[None]:
        """Count the block as ``part``."""
        if self._on_gpu and part != "data":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((part, begin, end))
            return
        started = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - started

    def count_step(self) -> None:
        """Count a step."""
        self._steps += 1

    def since_last(self) -> dict[str, float]:
        """Return the seconds per step by part since the last call; waits for the device."""
        if self._events:
            self._events[-1][2].synchronize()
        for part, begin, end in self._events:
            self._seconds[part] += begin.elapsed_time(end) / 1000
        means = {part: seconds / max(self._steps, 1) for part, seconds in self._seconds.items()}
        self._start_anew()
        return means

    def _start_anew(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._steps = 0
