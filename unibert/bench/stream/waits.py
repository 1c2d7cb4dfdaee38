"""How long a training at a steady pace waits for its data, when a lane turns to its next window too."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unibert.bench.stream.providers import stream_config
from unibert.bench.stream.work import Work
from unibert.corpus.manifest import Shard
from unibert.schedules import Timeline
from unibert.stream.ahead import prepare_ahead
from unibert.stream.stream import Stream

RANKS = 64
STEP_SECONDS = 0.04
WARMUP_STEPS = 8
"""Steps that are left out: the first window is opened before the first step."""


def measure_waits(work: Work, num_workers: int, seconds: float, *, cold: bool) -> dict[str, Any]:
    """Ask for a step's batches, compute (that is, sleep) for `STEP_SECONDS`, and so on, as one of `RANKS` ranks of one
    lane each.

    Args:
        work: the corpus, and ``batch_size`` sequences per step of this rank.
        num_workers: loader processes.
        seconds: duration without waits.
        cold: drop the shards from the page cache, one after the other, all the time.

    Returns:
        "steps", "windows" (opened after the first), "mean_wait", "longest_wait" (seconds), "share" of the step,
        "share_of_ranks": see `share_of_ranks`.
    """
    num_steps = WARMUP_STEPS + max(1, round(seconds / STEP_SECONDS))
    num_sequences = RANKS * work.batch_size
    timeline = Timeline(num_steps * num_sequences * work.sequence_length, num_sequences, work.sequence_length)
    config = replace(stream_config(work, num_workers), lanes=RANKS)
    stream = Stream(work.corpus, config, seed=work.seed, timeline=timeline, world_size=RANKS)
    cache = _PageCache(Path(work.corpus), work.shards)
    if cold:
        cache.drop_all()
    waits = np.empty(num_steps)
    window = 0
    steps = prepare_ahead(stream.steps(), lambda step: work.batch_size)
    with closing(steps):
        for number in range(num_steps):
            begun = time.perf_counter()
            step, _ = next(steps)
            received = time.perf_counter()
            waits[number] = received - begun
            window = step.state["0"]["window"]
            if cold:
                cache.drop_next()
            time.sleep(max(0.0, received + STEP_SECONDS - time.perf_counter()))
    waits = waits[WARMUP_STEPS:]
    return {
        "loader_processes": num_workers,
        "cold": cold,
        "steps": len(waits),
        "windows": window,
        "mean_wait": float(waits.mean()),
        "longest_wait": float(waits.max()),
        "share": float(waits.mean()) / STEP_SECONDS,
        "share_of_ranks": share_of_ranks(waits, work.seed),
    }


def share_of_ranks(waits: npt.NDArray[np.float64], seed: int) -> float:
    """Return what `RANKS` ranks wait, as a share of the step's time.

    All ranks wait for the slowest. Each has the waits of the measured rank, (N,), shifted by a random number of steps.
    """
    shifts = np.random.default_rng(seed).integers(len(waits), size=RANKS)
    slowest = np.max([np.roll(waits, shift) for shift in shifts], axis=0)
    return float(slowest.mean()) / STEP_SECONDS


class _PageCache:
    """Removes shards from the operating system's cache of files."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._paths = [folder / shard.path for shard in shards]
        self._next = 0

    def drop_all(self) -> None:
        """Drop all shards."""
        # Pages that are not on the disk yet stay.
        os.sync()
        for _ in self._paths:
            self.drop_next()

    def drop_next(self) -> None:
        """Drop the shard after the last one."""
        descriptor = os.open(self._paths[self._next], os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        self._next = (self._next + 1) % len(self._paths)
