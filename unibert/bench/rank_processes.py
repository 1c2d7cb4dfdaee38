"""Processes of a benchmark that work together, one for each rank."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unibert.files import write_json
from unibert.launcher import free_port

Row = dict[str, Any]


def on_ranks(measure: Callable[[int], Row], ranks: int, threads: int, result_file: Path) -> list[Row]:
    """Return what ``measure`` returns for each rank, as JSON gives it back.

    A single rank is measured in this process and belongs to no group: transformers' Trainer would put its model into
    DistributedDataParallel. Several have a process each, and the environment from which torch makes a group. If one
    dies, the others are ended, as they would wait for it.

    Args:
        measure: picklable, called with the rank.
        ranks: number of ranks.
        threads: CPU threads of each.
        result_file: beside it, each rank writes its own.
    """
    if ranks == 1:
        torch.set_num_threads(threads)
        return [measure(0)]
    context, port = multiprocessing.get_context("spawn"), free_port()
    files = [result_file.with_suffix(f".{rank}.json") for rank in range(ranks)]
    processes = [
        context.Process(target=_measure_rank, args=(measure, rank, ranks, threads, port, file))
        for rank, file in enumerate(files)
    ]
    for process in processes:
        process.start()
    running = list(processes)
    while running:
        multiprocessing.connection.wait([process.sentinel for process in running])
        running = [process for process in running if process.exitcode is None]
        if any(process.exitcode for process in processes):
            for process in running:
                process.kill()
            why = next(f"rank {rank} ended with {p.exitcode}" for rank, p in enumerate(processes) if p.exitcode)
            return [{"status": "failed", "why": why}]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _measure_rank(
    measure: Callable[[int], Row], rank: int, ranks: int, threads: int, port: int, result_file: Path
) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ |= {name: str(number) for name, number in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(threads)
    write_json(result_file, measure(rank))
