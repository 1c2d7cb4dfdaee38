"""Counts this process's collectives, which are the same on all ranks, so that the watchdog can tell who is behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CollectiveCounter:
    """Number of collectives that this process has begun and has completed."""

    def __init__(self) -> None:
        self.begun = 0
        self.done = 0


counter = CollectiveCounter()


@contextmanager
def counted_collective() -> Iterator[None]:
    """Count the block as one collective. A micro-batch, in which there may be many, counts as one too."""
    counter.begun += 1
    yield
    counter.done += 1
