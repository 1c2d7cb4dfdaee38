"""Errors that any line may meet, since memory has run out or another rank is gone, as sentences; and exit statuses."""

from __future__ import annotations

import socket

import torch
import torch.distributed as dist

from unibert.errors import LostRanksError, RankError, UserError
from unibert.stream.loader_processes import raise_if_loader_killed
from unibert.training.ranks.placement import Placement

EXIT_MISTAKE = 1
"""Exit status of a command that ends with a user's mistake, which another start would only repeat."""

EXIT_LOST_RANKS = 76
"""Exit status of a run whose other ranks have ended or hang; it can be continued from its newest checkpoint."""


def explain(error: RuntimeError | MemoryError, placement: Placement, micro_batch_size: int) -> None:
    """Say what an error means that may come up in any line of a training.

    Args:
        error: that this rank has met.
        placement: of this rank.
        micro_batch_size: in rows, for the sentence.

    Raises:
        RankError, LostRanksError: that say what it means, if that is known.
    """
    raise_if_out_of_memory(error, placement, micro_batch_size)
    if isinstance(error, RuntimeError):
        try:
            raise_if_loader_killed(error)
        except UserError as mistake:
            raise RankError(f"rank {placement.rank}: {mistake}") from error
        raise_if_ranks_lost(error, placement.rank)


def raise_if_out_of_memory(error: BaseException, placement: Placement, micro_batch_size: int) -> None:
    """Say so if ``error`` is torch's or Python's word that no more memory is to be had.

    Args:
        error: anything.
        placement: of the rank that has met it.
        micro_batch_size: in rows, for the sentence.

    Raises:
        RankError: in that case.
    """
    rows = f"lower training.micro_batch_size (now {micro_batch_size}), which leaves the batches as they are"
    if isinstance(error, torch.OutOfMemoryError):
        gib = torch.cuda.get_device_properties(placement.device).total_memory / 2**30
        what = f"the {gib:.1f} GiB of the GPU are used up; {rows}, or take a training.ds_config that shards or offloads"
    # The allocator of the CPU has no exception of its own.
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        what = f"the machine's memory is used up; {rows}, or lower stream.num_workers or stream.window_shards"
    else:
        return
    raise RankError(f"rank {placement.rank} ({socket.gethostname()}): {what}") from error


def raise_if_ranks_lost(error: RuntimeError, rank: int) -> None:
    """Say so if ``error`` is a collective's word to ``rank`` that other ranks are gone or do not answer.

    Raises:
        LostRanksError: in that case.
    """
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        late = "Timed out" in str(error) or "timeout" in str(error).lower()
        raise LostRanksError(
            f"rank {rank}: another rank did not answer in time and hangs"
            if late
            else f"rank {rank}: another rank has ended; it says why, or its machine or the system killed it"
        ) from error
