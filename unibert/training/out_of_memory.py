"""Memory that has run out, as a sentence instead of a traceback."""

from __future__ import annotations

import socket

import torch

from unibert.errors import RankError
from unibert.training.distributed import Placement


def refuse_lack_of_memory(error: BaseException, placement: Placement, micro_batch_size: int) -> None:
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
