"""A process that measures the messages of ranks: ``python -m unibert.bench.scaling.link JOB.json RESULT.json``.

The result has one row for each operation and size: ``operation``, ``bytes`` of the whole tensor, and ``seconds``, the
median of a message on the rank that waits longest. One operation is no message: `FLATTEN`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unibert.bench.rank_processes import on_ranks
from unibert.files import write_json
from unibert.training.freed_memory import keep_freed_memory
from unibert.training.ranks.collectives import join

Row = dict[str, Any]

SIZES = tuple(4**power for power in range(6, 15))
"""Bytes of the messages: 4 KiB to 256 MiB."""
LARGE = 1 << 22
"""Bytes from which ranks compute before a message."""
SMALL_MESSAGES, LARGE_MESSAGES = 40, 4
FLATTEN = "flatten"
"""What DeepSpeed does with the gradients of ZeRO 0 besides sending them: it copies them into one tensor, divides that
by the ranks, and copies it back. `unibert.training.engine` saves this where there is one rank."""


def main(job_file: str, result_file: str) -> None:
    """Measure ``ranks`` ranks with ``threads`` threads each.

    They compute for ``pause`` seconds before each large message, as in a training: memory that a message has freed may
    not be at hand for the next.
    """
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    ranks = on_ranks(partial(measure_link, job["pause"]), job["ranks"], job["threads"], Path(result_file))
    if failed := [row for row in ranks if "why" in row]:
        write_json(Path(result_file), failed[0])
        return
    rows = [max(rows, key=lambda row: row["seconds"]) for rows in zip(*(rank["rows"] for rank in ranks), strict=True)]
    write_json(Path(result_file), {"rows": rows})


def measure_link(pause: float, rank: int) -> Row:
    """Measure what this rank sees of the messages of all."""
    placement = join()
    keep_freed_memory(placement.device)
    rows = []
    for size in SIZES:
        whole = torch.zeros(size // 4, device=placement.device)
        for operation, send in _operations(whole).items():
            rows.append(
                {"operation": operation, "bytes": size, "seconds": _seconds(send, placement.device, size, pause)}
            )
    dist.destroy_process_group()
    return {"rows": rows}


def _operations(whole: Tensor) -> dict[str, Callable[[], Any]]:
    """What the ranks do with a tensor. Their shares are parts of it, as in DeepSpeed's stages 1 and 2."""
    world_size = dist.get_world_size()
    share = whole.chunk(world_size)[dist.get_rank()]

    def flatten() -> None:
        halves = whole.chunk(2)
        for half, summed in zip(halves, torch.cat(halves).div_(world_size).chunk(2), strict=True):
            half.copy_(summed)

    return {
        "all_reduce": partial(dist.all_reduce, whole),
        "all_gather": partial(dist.all_gather_into_tensor, whole, share),
        "reduce_scatter": partial(dist.reduce_scatter_tensor, share, whole),
        FLATTEN: flatten,
    }


def _seconds(send: Callable[[], Any], device: torch.device, size: int, pause: float) -> float:
    send()
    times = []
    for _ in range(LARGE_MESSAGES if size >= LARGE else SMALL_MESSAGES):
        if size >= LARGE:
            _compute(pause, device)
        dist.barrier()
        started = time.perf_counter()
        send()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _compute(seconds: float, device: torch.device) -> None:
    matrix = torch.ones(1024, 1024, device=device)
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)


if __name__ == "__main__":
    main(*sys.argv[1:])
