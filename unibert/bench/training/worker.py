"""A process that measures one provider: ``python -m unibert.bench.training.worker JOB.json RESULT.json``.

Each provider has its own process in each round, since its libraries and memory would affect the next one. On several
ranks it starts a process for each.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from unibert.accelerators import measured_peak
from unibert.bench.availability import NotAvailableError
from unibert.bench.rank_processes import on_ranks
from unibert.bench.training.ours import ABLATIONS, OURS
from unibert.bench.training.peers import PEERS
from unibert.bench.training.provider import Place, TrainProvider
from unibert.bench.training.stopwatch import Stopwatch
from unibert.bench.training.work import TrainWork, write_corpus
from unibert.bench.worker_process import one_line
from unibert.files import write_json

PROVIDERS: tuple[TrainProvider, ...] = (*OURS, *PEERS, *ABLATIONS)

PEAK_SECONDS = 0.5
"""For how long the peak of products is measured."""

Row = dict[str, Any]


@dataclass(kw_only=True)
class Job:
    """The job of a worker."""

    task: Literal["corpus", "train"]
    """Write the corpus, or train with a provider and then measure the peak of products."""
    work: dict[str, Any] = field(default_factory=dict)
    """Fields of `TrainWork`."""
    provider: str = ""
    started: float = 0.0
    """Time (`time.time`) at which the process was started."""


def main(job_file: str, result_file: str) -> None:
    """Do the job and write its result as JSON, for a provider that cannot run or fails {"status", "why"}."""
    job = Job(**json.loads(Path(job_file).read_text(encoding="utf-8")))
    work = TrainWork(**job.work)
    torch.set_num_threads(work.threads)
    if job.task == "corpus":
        write_corpus(work)
        result: Row = {}
    else:
        result = _train_on_ranks(job, Path(result_file))
    write_json(Path(result_file), result)


def _train_on_ranks(job: Job, result_file: Path) -> Row:
    """Train on each rank; return tokens, memory and peak of all, and the times of the slowest."""
    work = TrainWork(**job.work)
    rows = on_ranks(partial(_train, job), work.ranks, work.threads, result_file)
    if failed := [row for row in rows if "why" in row]:
        return failed[0]
    slowest = max(rows, key=lambda row: row["seconds"])
    sums = {key: sum(row[key] for row in rows) for key in ("tokens", "cpu_seconds", "peak_bytes", "peak_flops")}
    return slowest | sums


def _train(job: Job, rank: int) -> Row:
    work = TrainWork(**job.work)
    (provider,) = (provider for provider in PROVIDERS if provider.name == job.provider)
    device = _device(rank)
    stopwatch = Stopwatch(work.warmup, work.steps, device, job.started)
    try:
        provider.train(work, Place(rank, device), stopwatch)
    except (NotAvailableError, ImportError) as error:
        return {"status": "not run", "why": one_line(error)}
    except Exception as error:  # any error of a peer's library is recorded in its row
        return {"status": "failed", "why": one_line(error)}
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return stopwatch.result() | {"peak_bytes": peak, "peak_flops": 1e12 * measured_peak(device, dtype, PEAK_SECONDS)}


def _device(rank: int) -> torch.device:
    return torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")


if __name__ == "__main__":
    main(*sys.argv[1:])
