"""What the deepspeed launcher starts twice: the two meet, as the ranks of a run would."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(seconds=60)
"""After which a rank whose launcher was ended goes too."""


def main() -> None:
    """Print over what, and how many, this rank has met."""
    backend = "gloo"
    device = torch.device("cpu")
    if torch.cuda.device_count() >= int(os.environ["WORLD_SIZE"]):
        backend, device = "nccl", torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=PATIENCE)
    met = torch.ones(1, device=device)
    dist.all_reduce(met)
    print(f"met {int(met)} over {backend}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
