"""A process that measures one provider: ``python -m unibert.bench.training.worker JOB.json RESULT.json``.

Each provider has its own process in each round, since its libraries and memory would affect the next one. On several
ranks it starts a process for each.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from unibert.accelerators import measured_peak
from unibert.bench.availability import NotAvailableError
from unibert.bench.training.ours import ABLATIONS, OURS
from unibert.bench.training.peers import PEERS
from unibert.bench.training.provider import Place, TrainProvider
from unibert.bench.training.stopwatch import Stopwatch
from unibert.bench.training.work import TrainWork, write_corpus
from unibert.bench.worker_process import one_line
from unibert.files import write_json
from unibert.launcher import free_port

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
    ranks, port = job.work["ranks"], free_port()
    if ranks == 1:
        rows = [_train(job, 0, port)]
    else:
        context = multiprocessing.get_context("spawn")
        files = [result_file.with_suffix(f".{rank}.json") for rank in range(ranks)]
        processes = [
            context.Process(target=_train_rank, args=(job, rank, port, file)) for rank, file in enumerate(files)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if failed := [row for row in rows if "why" in row]:
        return failed[0]
    slowest = max(rows, key=lambda row: row["seconds"])
    sums = {key: sum(row[key] for row in rows) for key in ("tokens", "cpu_seconds", "peak_bytes", "peak_flops")}
    return slowest | sums


def _train_rank(job: Job, rank: int, port: int, file: Path) -> None:
    torch.set_num_threads(job.work["threads"])
    write_json(file, _train(job, rank, port))


def _train(job: Job, rank: int, port: int) -> Row:
    work = TrainWork(**job.work)
    (provider,) = (provider for provider in PROVIDERS if provider.name == job.provider)
    if work.ranks > 1:
        # A single rank does without: Trainer would put its model into DistributedDataParallel.
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": work.ranks, "LOCAL_WORLD_SIZE": work.ranks}
        os.environ |= {name: str(number) for name, number in (places | {"MASTER_PORT": port}).items()}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
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
