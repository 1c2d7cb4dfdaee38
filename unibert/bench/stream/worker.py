"""A process that measures one provider: ``python -m unibert.bench.stream.worker JOB.json RESULT.json``.

Providers have processes of their own because one's libraries and memory would be in the way of the next one's.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import resource
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from unibert.bench.availability import NotAvailableError
from unibert.bench.process_memory import CLEAR_REFS, RESET_PEAK, status_bytes
from unibert.bench.stream.plan import measure_plan, measure_resume
from unibert.bench.stream.providers import STREAM_PROVIDERS
from unibert.bench.stream.work import Source, StreamProvider, Work, prepare_sequences
from unibert.files import write_json

WARMUP_TOKENS = 1_000_000

Row = dict[str, Any]


@dataclass(kw_only=True)
class Job:
    """What a worker is to do."""

    task: Literal["rows", "prepare", "tune", "pass", "plan", "resume"]
    """Cut the corpus into rows; write a provider's copy; find its fastest option; measure a pass; measure planning,
    or resuming."""
    work: dict[str, Any] = field(default_factory=dict)
    """Fields of `Work`."""
    provider: str = ""
    option: str = ""
    tokens: int = 0
    """Of a pass."""
    seconds: float = 0.0
    """Longest time for an option."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main(job_file: str, result_file: str) -> None:
    """Do the job and write its result as JSON; a provider that cannot run or fails gives {"status", "why"}."""
    job = Job(**json.loads(Path(job_file).read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    write_json(Path(result_file), _do(job))


def provider_of(name: str) -> StreamProvider:
    """The provider of this name."""
    (provider,) = (each for each in STREAM_PROVIDERS if each.name == name)
    return provider


def _do(job: Job) -> Row:
    if job.task == "plan":
        return measure_plan()
    work = Work(**job.work)
    if job.task == "rows":
        return prepare_sequences(work)
    if job.task == "resume":
        return measure_resume(work)
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
        return {"status": "not run", "why": sentence(error)}
    except Exception as error:  # whatever a peer's library raises is that peer's row
        return {"status": "failed", "why": sentence(error)}


def sentence(error: Exception) -> str:
    """The error's message in one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def tune(sources: dict[str, Source], tokens: int, seconds: float) -> Row:
    """Tokens per second of each option in a pass, or in as much of it as ``seconds`` allow; why, if one fails.

    Raises:
        Exception: of the last option, if all fail.
    """
    rates: dict[str, float] = {}
    failures: dict[str, str] = {}
    for option, source in sources.items():
        try:
            _run(source, min(tokens, WARMUP_TOKENS), seconds)
            done, _, taken, _ = _run(source, tokens, seconds)
            rates[option] = done / taken
        except Exception as error:  # an option that a peer refuses is no choice
            failures[option] = sentence(error)
            if not rates and len(failures) == len(sources):
                raise
    return {"rates": rates, "failures": failures}


def measure_pass(source: Source, tokens: int) -> Row:
    """A pass of at least ``tokens`` tokens or to its end, after a warm-up of `WARMUP_TOKENS`.

    Time runs from the first batch asked for to the last one got, the filling of buffers and windows included.

    Returns:
        "tokens", "padding_share", "seconds", "first_batch_seconds", "cpu_seconds" (all threads and processes, their
        end included), "memory_bytes": growth of the peak resident set since libraries were imported and inputs made,
        warm-up included, and at the end the private memory of child processes.
    """
    gc.collect()
    baseline = None
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text(RESET_PEAK)
        baseline = status_bytes("VmRSS")
    _run(source, min(tokens, WARMUP_TOKENS))
    cpu = _cpu_seconds()
    memory: list[int] = []
    done, positions, seconds, first = _run(source, tokens, baseline=baseline, memory=memory)
    row = {
        "tokens": done,
        "padding_share": 1 - done / positions,
        "seconds": seconds,
        "first_batch_seconds": first,
        "cpu_seconds": _cpu_seconds() - cpu,
    }
    return row | ({"memory_bytes": memory[0]} if memory else {})


def _run(
    source: Source,
    tokens: int,
    most_seconds: float = float("inf"),
    *,
    baseline: int | None = None,
    memory: list[int] | None = None,
) -> tuple[int, int, float, float]:
    """Tokens and positions delivered, seconds in all and until the first delivery; adds the memory's growth."""
    deliveries: Any = source()
    done = positions = 0
    first = 0.0
    begun = time.perf_counter()
    with closing(deliveries):
        for delivery in deliveries:
            if not done:
                first = time.perf_counter() - begun
            done += delivery.tokens
            positions += delivery.positions
            if done >= tokens or time.perf_counter() - begun > most_seconds:
                break
        seconds = time.perf_counter() - begun
        if memory is not None and baseline is not None:
            memory.append(_growth(baseline))
    return done, positions, seconds, first


def _growth(baseline: int) -> int:
    """This process's peak resident set over ``baseline``, and what its children have and don't share."""
    children = [Path(f"/proc/{child.pid}/smaps_rollup") for child in multiprocessing.active_children()]
    return status_bytes("VmHWM") - baseline + sum(status_bytes("Private_Dirty", child) for child in children)


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main(*sys.argv[1:])
