"""Checks before training starts under Slurm: every rank looks at its machine, and rank 0 names the bad ones.

The ranks meet in a store only, so that one that never comes is named too; the network is tried last, when all else is
well.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from unibert.errors import AgreedError, UserError
from unibert.files import write_json
from unibert.machine import MIN_TEMPORARY_GIB, free_gib, held_gpus, min_run_gib, not_writable, too_full
from unibert.training.checkpoint.manager import complete_checkpoints, step_of
from unibert.training.config import RunConfig
from unibert.training.ranks.placement import hosts_of_ranks, place_from_environment

MAX_START = timedelta(minutes=3)
"""After which a rank that has not come is missed."""

MAX_CLOCK_DIFFERENCE = 2.0
"""Seconds. Logs and file times of two nodes are otherwise out of order, and at minutes munge refuses credentials."""


@dataclass(frozen=True)
class _Rank:
    """What one rank says of itself."""

    host: str
    problems: list[str]
    free_gib: float


def preflight(config: RunConfig) -> None:
    """Check all nodes of the job, all ranks together, and print one line of figures.

    Raises:
        AgreedError: that names the bad nodes and what is bad; or that the run was started again and again in vain.
        UserError: if rank 0 cannot be reached.
    """
    rank, local_rank, world_size, local_world_size = place_from_environment()
    own = _Rank(socket.gethostname(), *_look_around(Path(config.run_dir), local_rank, local_world_size))
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=rank == 0, timeout=MAX_START, wait_for_workers=False)
        meeting = _Meeting(store, rank, world_size)
        try:
            _check_together(config, meeting, own)
        finally:
            meeting.leave()
    except dist.DistError as error:
        raise UserError(
            f"preflight: {own.host}: no answer from rank 0 on {address}; look at the network between the two"
        ) from error


def _check_together(config: RunConfig, meeting: _Meeting, own: _Rank) -> None:
    ranks = [_Rank(**said) for said in meeting.exchange("ranks", own.__dict__)]
    clocks = meeting.exchange("clocks", time.time())
    middle = statistics.median(clocks)
    problems = [f"{one.host}: {problem}" for one in ranks for problem in one.problems]
    for one, clock in zip(ranks, clocks, strict=True):
        if abs(clock - middle) > MAX_CLOCK_DIFFERENCE:
            problems.append(f"{one.host}: its clock is {clock - middle:+.0f} s off the others', set it (NTP)")
    _refuse(problems)
    speed = _try_network(meeting, [one.host for one in ranks]) if len(ranks) > 1 else None
    _refuse(meeting.exchange("restarts", _count_restart(config) if meeting.rank == 0 else [])[0])
    if meeting.rank == 0:
        figures = [
            f"{len({one.host for one in ranks})} nodes, {len(ranks)} ranks",
            f"{min(one.free_gib for one in ranks):.1f} GiB free in {config.run_dir}",
            f"clocks within {max(clocks) - min(clocks):.2f} s",
            *([] if speed is None else [f"all-reduce {speed:.3g} GB/s"]),
        ]
        print(f"unibert: preflight: {', '.join(figures)}", file=sys.stderr, flush=True)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise AgreedError(f"preflight: {'; '.join(dict.fromkeys(problems))}")


class _Meeting:
    """Exchanges of JSON over the store."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size

    def exchange(self, name: str, value: Any) -> list[Any]:
        """Every rank's value, in order of rank.

        Raises:
            AgreedError: that names the ranks that do not come.
        """
        keys = [f"{name}/{rank}" for rank in range(self.world_size)]
        self.store.set(keys[self.rank], json.dumps(value))
        if missing := self._missing(keys, MAX_START.total_seconds()):
            hosts = hosts_of_ranks(self.world_size)
            raise AgreedError(
                "preflight: nothing was heard for "
                f"{MAX_START.total_seconds():.0f} s from {', '.join(f'rank {r} ({hosts[r]})' for r in missing)}"
            )
        return [json.loads(value) for value in self.store.multi_get(keys)]

    def leave(self) -> None:
        """The store goes with rank 0, who therefore goes last."""
        keys = [f"left/{rank}" for rank in range(self.world_size)]
        self.store.set(keys[self.rank], "")
        if self.rank == 0:
            self._missing(keys, timeout=5)

    def _missing(self, keys: list[str], timeout: float) -> list[int]:
        """The ranks whose key has not come in time."""
        deadline = time.monotonic() + timeout
        missing = list(range(self.world_size))
        while missing := [rank for rank in missing if not self.store.check([keys[rank]])]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02 if self.world_size < 64 else 0.5)
        return missing


# ---- one machine -------------------------------------------------------------------------------------------------


def _look_around(run_dir: Path, local_rank: int, local_world_size: int) -> tuple[list[str], float]:
    """What is bad here, and the free space of the run folder in GiB."""
    problems = []
    if local_rank == 0:
        problems += _look_at_gpus(local_world_size)
        temporary = Path(tempfile.gettempdir())
        problems += too_full(temporary, MIN_TEMPORARY_GIB)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return [*problems, f"{run_dir} cannot be written ({error.strerror})"], 0.0
    if unwritable := not_writable(run_dir):
        return [*problems, *unwritable], 0.0
    problems += too_full(run_dir, min_run_gib())
    return problems, free_gib(run_dir)


def _look_at_gpus(local_world_size: int) -> list[str]:
    asked, seen = int(os.environ.get("SLURM_GPUS_ON_NODE", "0")), torch.cuda.device_count()
    if seen < asked:
        return [f"Slurm gave {asked} GPUs, and torch sees {seen}, look at nvidia-smi there"]
    if asked and asked != local_world_size:
        return [f"{asked} GPUs and {local_world_size} tasks, give --ntasks-per-node={asked}"]
    return held_gpus()


# ---- the network ---------------------------------------------------------------------------------------------------


def _try_network(meeting: _Meeting, hosts: list[str]) -> float:
    """GB/s of an all-reduce of all ranks; neighbouring nodes are tried in pairs where that is too slow.

    Raises:
        AgreedError: that names the nodes with which no pair is fast enough.
    """
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("network", meeting.store),
        rank=meeting.rank,
        world_size=meeting.world_size,
        timeout=MAX_START,
    )
    try:
        least = float(os.environ.get("UNIBERT_LEAST_GBPS", "0.01"))
        speed = min(meeting.exchange("speed", _all_reduce_speed(device, None, meeting.world_size)))
        nodes = list(dict.fromkeys(hosts))
        if speed >= least or len(nodes) == 1:
            _refuse([f"{nodes[0]}: all-reduce at {speed:.3g} GB/s, and {least:g} are wanted"] if speed < least else [])
            return speed
        slow: dict[str, list[bool]] = {node: [] for node in nodes}
        for number in range(len(nodes) if len(nodes) > 2 else 1):
            pair = [nodes[number], nodes[(number + 1) % len(nodes)]]
            ranks = sorted(hosts.index(node) for node in pair)
            group = dist.new_group(ranks)
            own = _all_reduce_speed(device, group, 2) if meeting.rank in ranks else 0.0
            between = max(meeting.exchange(f"pair {number}", own))
            for node in pair:
                slow[node].append(between < least)
        bad = [node for node, pairs in slow.items() if all(pairs)]
        raise AgreedError(
            f"preflight: {', '.join(bad) or 'no single node'}: all-reduce at {speed:.3g} GB/s, and {least:g} are wanted"
        )
    except RuntimeError as error:
        raise AgreedError(f"preflight: an all-reduce of all ranks failed: {str(error).splitlines()[0]}") from error
    finally:
        dist.destroy_process_group()


def _all_reduce_speed(device: torch.device, group: Any, world_size: int) -> float:
    """GB/s that each rank sends and receives, as nccl-tests count it: the best of three."""
    values = torch.zeros((1 << 25) if device.type == "cuda" else (1 << 20), device=device)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        dist.all_reduce(values, group=group)
        values[0].item()
        seconds.append(time.perf_counter() - started)
    # The first is left out: it makes the connections.
    return 2 * (world_size - 1) / world_size * values.nbytes / min(seconds[1:]) / 1e9


# ---- starting again ------------------------------------------------------------------------------------------------


def _count_restart(config: RunConfig) -> list[str]:
    """Note in the run folder that Slurm starts the run again; a problem if that has led nowhere too often."""
    path = Path(config.run_dir) / "restarts.json"
    checkpoints = complete_checkpoints(Path(config.run_dir) / "checkpoints")
    step = step_of(checkpoints[-1]) if checkpoints else 0
    restarts = 0
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        restarts = before["restarts"] + 1 if before["step"] == step else 0
    write_json(path, {"step": step, "restarts": restarts})
    limit = config.training.restarts_without_progress
    if restarts <= limit:
        return []
    return [
        f"{config.run_dir}: started again {restarts} times without a checkpoint after step {step}; "
        f"training.restarts_without_progress allows {limit}; the log says what ended them, and sbatch starts anew"
    ]
