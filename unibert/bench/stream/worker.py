"""A process that measures one provider: ``python -m unibert.bench.stream.worker JOB.json RESULT.json``.

Each provider has its own process, since its libraries and memory would affect the next one.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import resource
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from unibert.bench.availability import NotAvailableError
from unibert.bench.process_memory import CLEAR_REFS, RESET_PEAK, status_bytes
from unibert.bench.stream.plan import NUM_LANGUAGES, NUM_SHARDS, RUN_TOKENS, measure_plan, measure_resume
from unibert.bench.stream.providers import STREAM_PROVIDERS
from unibert.bench.stream.waits import measure_waits
from unibert.bench.stream.work import Source, StreamProvider, Work, prepare_sequences
from unibert.bench.worker_process import one_line
from unibert.files import write_json

WARMUP_TOKENS = 1_000_000

Row = dict[str, Any]


@dataclass(kw_only=True)
class Job:
    """The job of a worker."""

    task: Literal["sequences", "prepare", "tune", "pass", "plan", "resume", "waits"]
    """Cut the corpus into sequences, write a provider's copy, find its fastest option, measure a pass, measure
    planning, measure resuming, or measure waits."""
    work: dict[str, Any] = field(default_factory=dict)
    """Fields of `Work`."""
    provider: str = ""
    option: str = ""
    tokens: int = 0
    """Tokens of a pass."""
    seconds: float = 0.0
    """Maximum seconds for an option; seconds of a measurement of waits."""


def main(job_file: str, result_file: str) -> None:
    """Do the job and write its result as JSON, for a provider that cannot run or fails {"status", "why"}."""
    job = Job(**json.loads(Path(job_file).read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    write_json(Path(result_file), _run_job(job))


def provider_of(name: str) -> StreamProvider:
    """The provider with this name."""
    (provider,) = (provider for provider in STREAM_PROVIDERS if provider.name == name)
    return provider


def _run_job(job: Job) -> Row:
    if job.task == "plan":
        return measure_plan(NUM_LANGUAGES, NUM_SHARDS, RUN_TOKENS)
    work = Work(**job.work)
    if job.task == "sequences":
        return prepare_sequences(work)
    if job.task == "resume":
        return measure_resume(work)
    if job.task == "waits":
        cases = product((0, 1), (False, True))
        return {"waits": [measure_waits(work, workers, job.seconds, cold=cold) for workers, cold in cases]}
    provider = provider_of(job.provider)
    try:
        if job.task == "prepare":
            assert provider.prepare is not None
            provider.prepare(work)
            return {}
        sources = provider.sources(work)
        if job.task == "tune":
            return tune(sources, job.tokens, job.seconds)
        return measure_pass(sources[job.option], job.tokens)
    except (NotAvailableError, ImportError) as error:
        return {"status": "not run", "why": one_line(error)}
    except Exception as error:  # any error of a peer's library is recorded in its row
        return {"status": "failed", "why": one_line(error)}


def tune(sources: dict[str, Source], tokens: int, seconds: float) -> Row:
    """Measure each option in a pass, or in as much of it as ``seconds`` allow.

    Returns:
        "rates", the tokens per second of each option, and "failures", the reason for each that fails.

    Raises:
        Exception: that of the last option, if all fail.
    """
    rates: dict[str, float] = {}
    failures: dict[str, str] = {}
    for option, source in sources.items():
        try:
            _run_pass(source, min(tokens, WARMUP_TOKENS), seconds)
            delivered, _, elapsed, _ = _run_pass(source, tokens, seconds)
            rates[option] = delivered / elapsed
        except Exception as error:  # an option that fails is not a candidate
            failures[option] = one_line(error)
            if not rates and len(failures) == len(sources):
                raise
    return {"rates": rates, "failures": failures}


def measure_pass(source: Source, tokens: int) -> Row:
    """Measure a pass to its end or to ``tokens`` tokens, after a warm-up of `WARMUP_TOKENS`.

    The time runs from the request for the first batch to the arrival of the last, and includes the filling of buffers
    and windows.

    Returns:
        "tokens", "padding_share", "seconds", "first_batch_seconds", "cpu_seconds" (of all threads and processes,
        including their termination), "memory_bytes": growth of the peak resident set since libraries were imported and
        inputs made, including the warm-up, plus the private memory of child processes at the end.
    """
    gc.collect()
    baseline = None
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text(RESET_PEAK)
        baseline = status_bytes("VmRSS")
    _run_pass(source, min(tokens, WARMUP_TOKENS))
    cpu_start = _cpu_seconds()
    memory: list[int] = []
    delivered, positions, seconds, first = _run_pass(source, tokens, baseline=baseline, memory=memory)
    row = {
        "tokens": delivered,
        "padding_share": 1 - delivered / positions,
        "seconds": seconds,
        "first_batch_seconds": first,
        "cpu_seconds": _cpu_seconds() - cpu_start,
    }
    return row | ({"memory_bytes": memory[0]} if memory else {})


def _run_pass(
    source: Source,
    tokens: int,
    max_seconds: float = float("inf"),
    *,
    baseline: int | None = None,
    memory: list[int] | None = None,
) -> tuple[int, int, float, float]:
    """Run a pass; append the memory's growth over ``baseline`` to ``memory``.

    Returns:
        tokens and positions delivered, seconds in total and until the first delivery.
    """
    deliveries: Any = source()
    delivered = positions = 0
    first = 0.0
    begun = time.perf_counter()
    with closing(deliveries):
        for delivery in deliveries:
            if not delivered:
                first = time.perf_counter() - begun
            delivered += delivery.tokens
            positions += delivery.positions
            if delivered >= tokens or time.perf_counter() - begun > max_seconds:
                break
        seconds = time.perf_counter() - begun
        if memory is not None and baseline is not None:
            memory.append(_growth(baseline))
    return delivered, positions, seconds, first


def _growth(baseline: int) -> int:
    """Growth of this process's peak resident set over ``baseline``, plus the private memory of its children."""
    children = [Path(f"/proc/{child.pid}/smaps_rollup") for child in multiprocessing.active_children()]
    return status_bytes("VmHWM") - baseline + sum(status_bytes("Private_Dirty", child) for child in children)


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main(*sys.argv[1:])
