"""Checks before training starts under Slurm: every rank checks its machine, and rank 0 names the faulty ones.

The ranks exchange results through a store only, so that a rank that never starts is named too. The network is tested
last, once everything else is in order.
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
from unibert.machine import MIN_TEMPORARY_GIB, free_gib, held_gpus, min_run_gib, not_writable, too_few_cores, too_full
from unibert.training.checkpoint.folder import complete_checkpoints, step_of
from unibert.training.config import RunConfig
from unibert.training.ranks.failures import raise_if_port_taken
from unibert.training.ranks.placement import device_index, hosts_of_ranks, place_from_environment, sees_only_its_own

MAX_START = timedelta(minutes=3)
"""Time after which a rank that has not started counts as missing."""

MAX_CLOCK_DIFFERENCE = 2.0
"""Seconds. Beyond it, logs and file times of two nodes are out of order; at minutes, munge rejects credentials."""


@dataclass(frozen=True)
class _Rank:
    """What one rank reports."""

    host: str
    problems: list[str]
    free_gib: float
    cores: list[int]
    """Numbers of the cores on which it may run."""


def preflight(config: RunConfig) -> None:
    """Check all nodes of the job, all ranks together, and print one line of figures.

    Raises:
        AgreedError: if a node is faulty, or the run has been restarted too often without progress.
        UserError: if rank 0 cannot be reached, or cannot listen on the ranks' port.
    """
    rank, local_rank, world_size, local_world_size = place_from_environment()
    machine = _check_machine(Path(config.run_dir), local_rank, local_world_size)
    own = _Rank(socket.gethostname(), *machine, cores=sorted(os.sched_getaffinity(0)))
    gpu = device_index(local_rank, local_world_size, torch.cuda.device_count())
    device = torch.device("cpu") if gpu is None else torch.device("cuda", gpu)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=rank == 0, timeout=MAX_START, wait_for_workers=False)
        exchange = _Exchange(store, rank, world_size)
        try:
            _check_together(config, exchange, own, device)
        finally:
            exchange.leave()
    except dist.DistError as error:
        raise_if_port_taken(error, rank)
        raise UserError(
            f"preflight: {own.host}: rank 0 on {address} does not respond; check the network between the two"
        ) from error


def _check_together(config: RunConfig, exchange: _Exchange, own: _Rank, device: torch.device) -> None:
    ranks = [_Rank(**report) for report in exchange.all("ranks", own.__dict__)]
    clocks = exchange.all("clocks", time.time())
    median = statistics.median(clocks)
    problems = [f"{one.host}: {problem}" for one in ranks for problem in one.problems]
    for one, clock in zip(ranks, clocks, strict=True):
        if abs(clock - median) > MAX_CLOCK_DIFFERENCE:
            problems.append(f"{one.host}: its clock differs by {clock - median:+.0f} s from the others, set it (NTP)")
    _raise_if_any(problems)
    speed = _test_network(exchange, [one.host for one in ranks], device) if len(ranks) > 1 else None
    _raise_if_any(exchange.all("restarts", _count_restart(config) if exchange.rank == 0 else [])[0])
    if exchange.rank == 0:
        figures = [
            f"{len({one.host for one in ranks})} nodes, {len(ranks)} ranks",
            f"{min(one.free_gib for one in ranks):.1f} GiB free in {config.run_dir}",
            f"clocks within {max(clocks) - min(clocks):.2f} s",
            *([] if speed is None else [f"all-reduce {speed:.3g} GB/s"]),
        ]
        for warning in _shortages_of_cores(config, ranks):
            print(f"unibert: preflight: {warning}", file=sys.stderr, flush=True)
        print(f"unibert: preflight: {', '.join(figures)}", file=sys.stderr, flush=True)


def _shortages_of_cores(config: RunConfig, ranks: list[_Rank]) -> list[str]:
    """A warning for each node whose ranks share too few cores, whether or not Slurm binds each to its own."""
    loaders = min(config.stream.num_workers, config.stream.lanes // len(ranks))
    problems = []
    for host in dict.fromkeys(one.host for one in ranks):
        cores = [one.cores for one in ranks if one.host == host]
        problems += [f"{host}: {one}" for one in too_few_cores(len(set().union(*cores)) // len(cores), loaders)]
    return problems


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        raise AgreedError(f"preflight: {'; '.join(dict.fromkeys(problems))}")


class _Exchange:
    """Exchanges JSON values between the ranks through the store."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size

    def all(self, name: str, value: Any) -> list[Any]:
        """Return every rank's value, in order of rank.

        Raises:
            AgreedError: if ranks are missing; names them.
        """
        keys = [f"{name}/{rank}" for rank in range(self.world_size)]
        self.store.set(keys[self.rank], json.dumps(value))
        if missing := self._missing(keys, MAX_START.total_seconds()):
            hosts = hosts_of_ranks(self.world_size)
            raise AgreedError(
                f"preflight: no message for {MAX_START.total_seconds():.0f} s from "
                f"{', '.join(f'rank {rank} ({hosts[rank]})' for rank in missing)}; check whether these nodes are up"
            )
        return [json.loads(value) for value in self.store.multi_get(keys)]

    def leave(self) -> None:
        """Leave the exchange. The store ends with rank 0, which therefore leaves last."""
        keys = [f"left/{rank}" for rank in range(self.world_size)]
        self.store.set(keys[self.rank], "")
        if self.rank == 0:
            self._missing(keys, timeout=5)

    def _missing(self, keys: list[str], timeout: float) -> list[int]:
        """The ranks whose key is not set in time."""
        deadline = time.monotonic() + timeout
        missing = list(range(self.world_size))
        while missing := [rank for rank in missing if not self.store.check([keys[rank]])]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02 if self.world_size < 64 else 0.5)
        return missing


# ---- one machine -------------------------------------------------------------------------------------------------


def _check_machine(run_dir: Path, local_rank: int, local_world_size: int) -> tuple[list[str], float]:
    """Problems of this machine, and the free space of the run folder in GiB."""
    problems = []
    if local_rank == 0 or sees_only_its_own(local_world_size, torch.cuda.device_count()):
        problems += _check_gpus(local_world_size)
    if local_rank == 0:
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


def _check_gpus(local_world_size: int) -> list[str]:
    allocated, visible = int(os.environ.get("SLURM_GPUS_ON_NODE", "0")), torch.cuda.device_count()
    if visible < allocated and not sees_only_its_own(local_world_size, visible):
        return [f"Slurm allocated {allocated} GPUs but torch sees {visible}, run nvidia-smi there"]
    if allocated and allocated != local_world_size:
        return [f"{allocated} GPUs but {local_world_size} tasks, set --ntasks-per-node={allocated}"]
    return held_gpus()


# ---- the network ---------------------------------------------------------------------------------------------------


def _test_network(exchange: _Exchange, hosts: list[str], device: torch.device) -> float:
    """Measure an all-reduce of all ranks in GB/s. If it is too slow, test neighbouring nodes in pairs.

    Raises:
        AgreedError: if it is too slow; names the nodes of which every pair is too slow.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("network", exchange.store),
        rank=exchange.rank,
        world_size=exchange.world_size,
        timeout=MAX_START,
    )
    try:
        minimum = float(os.environ.get("UNIBERT_LEAST_GBPS", "0.01"))
        speed = min(exchange.all("speed", _all_reduce_speed(device, None, exchange.world_size)))
        nodes = list(dict.fromkeys(hosts))
        shortage = f"all-reduce at {speed:.3g} GB/s, at least {minimum:g} expected"
        if speed >= minimum or len(nodes) == 1:
            _raise_if_any([f"{nodes[0]}: {shortage}"] if speed < minimum else [])
            return speed
        slow: dict[str, list[bool]] = {node: [] for node in nodes}
        for number in range(len(nodes) if len(nodes) > 2 else 1):
            pair = [nodes[number], nodes[(number + 1) % len(nodes)]]
            ranks = sorted(hosts.index(node) for node in pair)
            group = dist.new_group(ranks)
            own = _all_reduce_speed(device, group, 2) if exchange.rank in ranks else 0.0
            between = max(exchange.all(f"pair {number}", own))
            for node in pair:
                slow[node].append(between < minimum)
        bad = [node for node, pairs in slow.items() if all(pairs)]
        raise AgreedError(f"preflight: {', '.join(bad) or 'no single node'}: {shortage}")
    except RuntimeError as error:
        raise AgreedError(f"preflight: an all-reduce of all ranks failed: {str(error).splitlines()[0]}") from error
    finally:
        dist.destroy_process_group()


def _all_reduce_speed(device: torch.device, group: Any, world_size: int) -> float:
    """Bus bandwidth in GB/s as nccl-tests defines it: best of three."""
    values = torch.zeros((1 << 25) if device.type == "cuda" else (1 << 20), device=device)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        dist.all_reduce(values, group=group)
        values[0].item()
        seconds.append(time.perf_counter() - started)
    # The first run is left out: it opens the connections.
    return 2 * (world_size - 1) / world_size * values.nbytes / min(seconds[1:]) / 1e9


# ---- restarts -----------------------------------------------------------------------------------------------------


def _count_restart(config: RunConfig) -> list[str]:
    """Record in the run folder that Slurm has restarted the run; report if that was too often without progress."""
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
        f"{config.run_dir}: restarted {restarts} times without a checkpoint after step {step}, and "
        f"training.restarts_without_progress allows {limit}; the log shows what ended the runs; sbatch starts again"
    ]
