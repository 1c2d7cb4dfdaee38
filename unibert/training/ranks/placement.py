"""This process's place among the ranks, read from the environment that the ``deepspeed`` launcher or ``srun`` sets.

The module does not import torch, because the command line uses it too.
"""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unibert.errors import UserError
from unibert.options import join_words

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Placement:
    """One process of the run. ``local_*`` count the processes of this machine."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device


def place_from_environment() -> tuple[int, int, int, int]:
    """Return rank, local rank, world size and local world size, and complete the environment variables of torch.

    Raises:
        UserError: if the launcher's variables are inconsistent.
    """
    environment = os.environ
    if "RANK" in environment:
        needed = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in needed if name not in environment]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            raise UserError(
                f"the environment has RANK but {join_words(missing, 'and')} {verb} missing; start with the deepspeed "
                "launcher or srun"
            )
        local = int(environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", "1")))
        return int(environment["RANK"]), int(environment["LOCAL_RANK"]), int(environment["WORLD_SIZE"]), local
    if "SLURM_STEP_NUM_TASKS" in environment:
        place = (
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_LOCALID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_STEP_TASKS_PER_NODE"].split("(")[0].split(",")[0]),
        )
        environment.setdefault("MASTER_ADDR", _hosts(environment["SLURM_STEP_NODELIST"])[0])
        environment.setdefault("MASTER_PORT", str(20000 + int(environment["SLURM_JOB_ID"]) % 20000))
    else:
        place = (0, 0, 1, 1)
        # torch listens on any free port; another process might take one that is chosen here.
        environment["MASTER_ADDR"], environment["MASTER_PORT"] = "127.0.0.1", "0"
    # Without these, DeepSpeed searches for MPI.
    environment["RANK"], environment["LOCAL_RANK"], environment["WORLD_SIZE"] = map(str, place[:3])
    return place


def device_index(local_rank: int, local_world_size: int, num_visible: int) -> int | None:
    """Return which of the GPUs that this process sees is its own; None if it has none.

    Most launchers show all GPUs of a machine to each of its processes. Slurm shows each task its own, as number 0, if
    the job asks for ``--gpus-per-task=1``.
    """
    if sees_only_its_own(local_world_size, num_visible):
        return 0
    return local_rank if local_rank < num_visible else None


def sees_only_its_own(local_world_size: int, num_visible: int) -> bool:
    """Whether this process sees one GPU because the others of its machine belong to other tasks of Slurm."""
    allocated = int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
    return num_visible == 1 < local_world_size <= max(allocated, local_world_size * _gpus_per_task())


def _gpus_per_task() -> int:
    # A type may precede the number, as in a100:1.
    number = os.environ.get("SLURM_GPUS_PER_TASK", "0").rpartition(":")[2]
    return int(number) if number.isdigit() else 0


def hosts_of_ranks(world_size: int) -> list[str]:
    """Host of every rank. Slurm places the same number on each node; without Slurm, all ranks are on this machine."""
    hosts = _hosts(os.environ["SLURM_STEP_NODELIST"]) if "SLURM_STEP_NODELIST" in os.environ else [socket.gethostname()]
    return [hosts[rank * len(hosts) // world_size] for rank in range(world_size)]


def _hosts(nodelist: str) -> list[str]:
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"'scontrol show hostnames {nodelist}' failed ({error}); set MASTER_ADDR in the job script"
        ) from error
    return listed.stdout.split()


def is_first_rank() -> bool:
    """Whether this is rank 0 according to the environment. Inconsistent variables are not reported here."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def is_first_of_machine() -> bool:
    """Whether this is local rank 0 according to the environment."""
    # LOCAL_RANK may be the number of the device by now, see `unibert.training.ranks.collectives.join`.
    started_by_srun = is_one_of_srun() and os.environ.get("RANK") in (None, os.environ["SLURM_PROCID"])
    return os.environ.get("SLURM_LOCALID" if started_by_srun else "LOCAL_RANK", "0") == "0"


def is_one_of_srun() -> bool:
    """Whether ``srun`` has started more ranks than this one."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
