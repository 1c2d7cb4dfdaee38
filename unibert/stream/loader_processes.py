"""Loader processes: each produces the sequences of some lanes, step by step, in the order of the lanes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from unibert.errors import UserError

Part = TypeVar("Part")
Producer = Callable[[Sequence[int]], Iterator[Part]]
"""Yields one part per step from the given lanes."""


def produce_in_processes(
    produce: Producer[Part], lanes: Sequence[int], num_processes: int, prefetch_steps: int
) -> Iterator[list[Part]]:
    """Yield the parts of all lanes for every step, one part per process, in lane order; each process prepares
    ``prefetch_steps`` steps ahead.

    The processes live as long as the iterator. They end when it is closed, and when the calling process ends, however
    it does. They ignore the signals by which a scheduler announces the end of a job, which the caller handles.

    Raises:
        UserError: if ``produce`` raised one in a process, or a process was killed.
    """
    num_processes = min(num_processes, len(lanes))
    bounds = [len(lanes) * i // num_processes for i in range(num_processes + 1)]
    shares = [lanes[start:end] for start, end in pairwise(bounds)]
    loader = DataLoader(
        _ProducerDataset(produce, shares),
        batch_size=None,
        num_workers=num_processes,
        prefetch_factor=prefetch_steps,
        collate_fn=_identity,
        worker_init_fn=_initialize_worker,
        # Without a generator of its own, DataLoader draws from the global one, which dropout uses.
        generator=torch.Generator(),
    )
    parts: list[Part] = []
    try:
        for part in loader:
            if isinstance(part, UserError):
                raise part
            parts.append(part)
            if len(parts) == num_processes:
                yield parts
                parts = []
    except RuntimeError as error:
        raise_if_loader_killed(error)
        raise


def raise_if_loader_killed(error: RuntimeError) -> None:
    """Raise UserError if ``error`` is torch's message that a loader process was killed.

    torch may raise it in any line of the parent process.
    """
    if "DataLoader worker" in str(error):
        raise UserError(
            "a loader process was killed, most likely because memory ran out; lower stream.num_workers or "
            "stream.window_shards"
        ) from error


class _ProducerDataset(IterableDataset[Any], Generic[Part]):
    def __init__(self, produce: Producer[Part], shares: Sequence[Sequence[int]]) -> None:
        self._produce, self._shares = produce, shares

    def __iter__(self) -> Iterator[Part | UserError]:
        worker = get_worker_info()
        assert worker is not None
        try:
            yield from self._produce(self._shares[worker.id])
        except UserError as error:
            # Raised here, it would reach the user wrapped in a traceback.
            yield error


def _identity(part: Part) -> Part:
    return part


def _initialize_worker(worker_id: int) -> None:
    """Ignore the signals of a scheduler, and end with the parent."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """Exit when the parent sends SIGTERM or has died; ignore SIGTERM from other processes, which is for the parent.

    torch's own watchdog does not reach a process whose queue is full.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
