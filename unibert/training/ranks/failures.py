"""Errors that may come up anywhere in training, because memory runs out or another rank is gone, as clear sentences."""

from __future__ import annotations

import os
import socket

import torch
import torch.distributed as dist
from torch._dynamo.exc import TorchDynamoException

from unibert.errors import LostRanksError, RankError, UserError
from unibert.stream.loader_processes import raise_if_loader_killed
from unibert.training.ranks.placement import Placement

EXIT_MISTAKE = 1
"""Exit status of a command that ends with a user's mistake. Starting it again would only repeat the mistake."""

EXIT_LOST_RANKS = 76
"""Exit status of a run whose other ranks have ended or hang. It can be continued from its newest checkpoint."""


def explain(error: RuntimeError | MemoryError, placement: Placement, micro_batch_size: int) -> None:
    """Raise an error that explains ``error``, if its cause is known.

    Args:
        error: error that this rank has met in training.
        placement: placement of this rank.
        micro_batch_size: sequences per micro-batch, which the sentence names.

    Raises:
        RankError: if memory ran out, a loader process was killed or torch.compile failed.
        LostRanksError: if other ranks are gone.
    """
    raise_if_out_of_memory(error, placement, micro_batch_size)
    if isinstance(error, RuntimeError):
        try:
            raise_if_loader_killed(error)
        except UserError as mistake:
            raise RankError(f"rank {placement.rank}: {mistake}") from error
        if isinstance(error, TorchDynamoException):
            # Its first line may only introduce the next.
            lines = [line.strip() for line in str(error).splitlines()]
            reason = next((line for line in lines if line and not line.endswith(":")), type(error).__name__)
            raise RankError(
                f"rank {placement.rank} ({socket.gethostname()}): torch.compile failed ({reason}); set "
                "training.compile to false, or install another compiler"
            ) from error
        raise_if_ranks_lost(error, placement.rank)


def raise_if_out_of_memory(error: BaseException, placement: Placement, micro_batch_size: int) -> None:
    """Raise a RankError if ``error`` means that torch or Python could not allocate memory.

    Args:
        error: any error.
        placement: placement of the rank that has met it.
        micro_batch_size: sequences per micro-batch, which the sentence names.

    Raises:
        RankError: if memory ran out.
    """
    advice = f"lower training.micro_batch_size (now {micro_batch_size}), which leaves the batches as they are"
    if isinstance(error, torch.OutOfMemoryError):
        gib = torch.cuda.get_device_properties(placement.device).total_memory / 2**30
        sentence = f"the GPU's {gib:.1f} GiB are used up; {advice}, or choose a training.ds_config that shards more"
    # The CPU allocator raises no exception of its own.
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        sentence = f"the machine's memory is used up; {advice}, or lower stream.num_workers or stream.window_shards"
    else:
        return
    raise RankError(f"rank {placement.rank} ({socket.gethostname()}): {sentence}") from error


def raise_if_port_taken(error: RuntimeError, rank: int) -> None:
    """Raise a RankError if ``error`` means that ``rank`` cannot listen for the other ranks.

    Raises:
        RankError: if another process listens on MASTER_PORT.
    """
    if "EADDRINUSE" in str(error):
        port = os.environ["MASTER_PORT"]
        raise RankError(
            f"rank {rank} ({socket.gethostname()}): another process listens on port {port}; choose "
            "another port, with --master_port under the deepspeed launcher, with MASTER_PORT elsewhere"
        ) from error


def raise_if_ranks_lost(error: RuntimeError, rank: int) -> None:
    """Raise a LostRanksError if ``error`` is how a collective on ``rank`` reports that other ranks are gone or hang.

    Raises:
        LostRanksError: if other ranks are gone or do not respond.
    """
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        timed_out = "Timed out" in str(error) or "timeout" in str(error).lower()
        raise LostRanksError(
            f"rank {rank}: another rank did not respond in time"
            if timed_out
            else f"rank {rank}: another rank has ended; its own message says why, or the system log if it was killed"
        ) from error
