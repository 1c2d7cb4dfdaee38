"""One of two ranks that the deepspeed launcher starts and that communicate as the ranks of a run would."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=60)
"""Time after which a rank ends if the other is missing, for example because the launcher was killed."""


def main() -> None:
    """Print the number of ranks and the backend over which they communicate."""
    backend = "gloo"
    device = torch.device("cpu")
    if torch.cuda.device_count() >= int(os.environ["WORLD_SIZE"]):
        backend, device = "nccl", torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=TIMEOUT)
    count = torch.ones(1, device=device)
    dist.all_reduce(count)
    print(f"{int(count)} ranks over {backend}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
