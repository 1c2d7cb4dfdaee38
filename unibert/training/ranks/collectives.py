"""Joining the other ranks, and what all of them do together."""

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
from unibert.training.ranks.failures import raise_if_ranks_lost
from unibert.training.ranks.placement import Placement, place_from_environment
from unibert.training.ranks.watchdog import collectives

Object = TypeVar("Object")
COLLECTIVE_TIMEOUT = timedelta(minutes=15)


def join(timeout: timedelta = COLLECTIVE_TIMEOUT) -> Placement:
    """Join the other ranks: those of the ``deepspeed`` launcher, of ``srun``, or none.

    Args:
        timeout: after which a collective, or the meeting of the ranks, fails.

    Raises:
        UserError: if the launcher's variables make no sense or this machine has fewer GPUs than ranks.
        LostRanksError: if not all ranks come.
    """
    rank, local_rank, world_size, local_world_size = place_from_environment()
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"rank {rank} on {socket.gethostname()} is process {local_rank} of its machine, which has "
                f"{torch.cuda.device_count()} GPUs; start one process per GPU"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ or local_world_size > 1:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))
    try:
        _initialise_deepspeed(device, timeout)
    except RuntimeError as error:
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
    # DeepSpeed calls some collectives by names that torch deprecates, which no user can fix.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if device.type == "cpu":
        # DeepSpeed would compile this shared-memory all-reduce at the first start, with a compiler that may not be
        # there and a lock that a killed job leaves behind; gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        timeout=timeout,
        verbose=False,
    )


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """``values`` added up over all ranks, in place."""
    with collectives.one():
        dist.all_reduce(values)
    return values


def gather_objects(value: Object) -> list[Object]:
    """Every rank's ``value``, in order of rank, on every rank."""
    gathered: list[Any] = [None] * dist.get_world_size()
    with collectives.one():
        dist.all_gather_object(gathered, value)
    return gathered


def agree(error: UserError | None) -> None:
    """Tell every rank of the others' errors, so that none goes on to wait for a rank that has given up.

    Raises:
        AgreedError: on all ranks if any has an error; equal sentences are said once, with the ranks they come from.
    """
    ranks: dict[str, list[int]] = {}
    for rank, sentence in enumerate(gather_objects(None if error is None else str(error))):
        if sentence is not None:
            ranks.setdefault(sentence, []).append(rank)
    if not ranks:
        return
    if len(ranks) == 1 and len(next(iter(ranks.values()))) == dist.get_world_size():
        raise AgreedError(next(iter(ranks)))
    raise AgreedError("; ".join(f"rank {', '.join(map(str, who))}: {what}" for what, who in ranks.items()))


def wait_together(running: Future[Any] | None, *, heartbeat: float = 5.0) -> None:
    """Wait until what runs in a thread of any rank has ended, for longer than a collective's time-out if need be.

    Args:
        running: this rank's; it must not use collectives. Its errors are left in it.
        heartbeat: seconds after which the ranks meet, again and again; well below the time-out.
    """
    done = False
    while not done:
        if running is not None:
            wait([running], timeout=heartbeat)
        done = all(gather_objects(running is None or running.done()))


def run_on_rank_0(work: Callable[[], Object], *, heartbeat: float = 5.0) -> Object | None:
    """Run ``work`` in a thread of rank 0 while the others wait; see :func:`wait_together`.

    Returns:
        What ``work`` returned on rank 0, None on the others.

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
