"""Joining the other ranks, and operations that all ranks carry out together."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from unibert.errors import AgreedError, UserError
from unibert.training.ranks.collective_counter import counted_collective
from unibert.training.ranks.failures import raise_if_port_taken, raise_if_ranks_lost
from unibert.training.ranks.placement import Placement, device_index, place_from_environment
from unibert.training.ranks.readback import Readback, upload

Object = TypeVar("Object")
COLLECTIVE_TIMEOUT = timedelta(minutes=15)


def join(timeout: timedelta = COLLECTIVE_TIMEOUT) -> Placement:
    """Join the other ranks: those of the ``deepspeed`` launcher, of ``srun``, or none.

    Args:
        timeout: time after which a collective, or joining itself, fails.

    Raises:
        UserError: if the launcher's variables are inconsistent or this machine has fewer GPUs than ranks.
        RankError: if another process listens on the ranks' port.
        LostRanksError: if not all ranks join.
    """
    rank, local_rank, world_size, local_world_size = place_from_environment()
    if torch.cuda.is_available():
        index = device_index(local_rank, local_world_size, torch.cuda.device_count())
        if index is None:
            raise UserError(
                f"rank {rank} on {socket.gethostname()} is process {local_rank} of its machine, which has "
                f"{torch.cuda.device_count()} GPUs; start one process per GPU"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        # DeepSpeed takes it for the number of the device.
        os.environ["LOCAL_RANK"] = str(index)
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ or local_world_size > 1:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))
    try:
        _initialise_deepspeed(device, timeout)
    except RuntimeError as error:
        raise_if_port_taken(error, rank)
        raise_if_ranks_lost(error, rank)
        raise
    return Placement(rank, local_rank, world_size, local_world_size, device)


def _initialise_deepspeed(device: torch.device, timeout: timedelta) -> None:
    if device.type == "cpu":
        # DeepSpeed would warn that it has found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    # DeepSpeed calls some collectives by names that torch deprecates. No user can fix that.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if device.type == "cpu":
        # At the first start DeepSpeed would compile this shared-memory all-reduce, with a compiler that may be missing
        # and a lock that a killed job leaves behind. gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        timeout=timeout,
        verbose=False,
    )


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum ``values`` over all ranks, in place."""
    with counted_collective():
        dist.all_reduce(values)
    return values


class PendingSum:
    """A sum over all ranks that is computed while the caller goes on. All ranks must begin their sums in one order.

    Args:
        values: this rank's part, on the CPU.
        device: device of the collectives.
    """

    def __init__(self, values: torch.Tensor, device: torch.device) -> None:
        self._values = upload(values, device)
        self._work = dist.all_reduce(self._values, async_op=True)
        self._readback: Readback | None = None
        if device.type != "cpu":
            # This makes the device wait, not the host.
            self._work.wait()
            self._readback = Readback(self._values)

    def tolist(self) -> list[float]:
        """Wait for the sum and return it."""
        with counted_collective():
            if self._readback is not None:
                return self._readback.tolist()
            self._work.wait()
            return self._values.tolist()


def gather_objects(value: Object) -> list[Object]:
    """Return every rank's ``value``, in order of rank, on every rank."""
    gathered: list[Any] = [None] * dist.get_world_size()
    with counted_collective():
        dist.all_gather_object(gathered, value)
    return gathered


def agree(error: UserError | None) -> None:
    """Raise on all ranks if any rank has an error, so that no rank waits for one that has given up.

    Raises:
        AgreedError: on all ranks, with each distinct sentence once and the ranks that it comes from.
    """
    ranks_by_sentence: dict[str, list[int]] = {}
    for rank, sentence in enumerate(gather_objects(None if error is None else str(error))):
        if sentence is not None:
            ranks_by_sentence.setdefault(sentence, []).append(rank)
    if not ranks_by_sentence:
        return
    if len(ranks_by_sentence) == 1 and len(next(iter(ranks_by_sentence.values()))) == dist.get_world_size():
        raise AgreedError(next(iter(ranks_by_sentence)))
    raise AgreedError(
        "; ".join(f"rank {', '.join(map(str, ranks))}: {sentence}" for sentence, ranks in ranks_by_sentence.items())
    )


def wait_together(running: Future[Any] | None, *, heartbeat: float = 5.0) -> None:
    """Wait until the background work of every rank has ended, even if it takes longer than a collective's time-out.

    Args:
        running: work of this rank, if any. It must not use collectives. Its errors stay in the future.
        heartbeat: seconds between two collectives while the ranks wait; well below the time-out.
    """
    done = False
    while not done:
        if running is not None:
            wait([running], timeout=heartbeat)
        done = all(gather_objects(running is None or running.done()))


def run_on_rank_0(work: Callable[[], Object], *, heartbeat: float = 5.0) -> Object | None:
    """Run ``work`` in a thread of rank 0 while the others wait; see :func:`wait_together`.

    Returns:
        The result of ``work`` on rank 0, None on the other ranks.

    Raises:
        AgreedError: on all ranks, if ``work`` raised a UserError.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(work) if dist.get_rank() == 0 else None
        wait_together(running, heartbeat=heartbeat)
    error = running.exception() if running is not None else None
    if error is not None and not isinstance(error, UserError):
        raise error
    if (sentence := gather_objects(None if error is None else str(error))[0]) is not None:
        raise AgreedError(sentence)
    return None if running is None else running.result()
