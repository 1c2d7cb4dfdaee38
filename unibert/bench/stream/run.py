"""``unibert bench stream``: UniBERT's stream and other loaders on the same documents.

``results.json``::

    format         2
    benchmark      stream
    environment    device, cores, versions of Python and packages, those of the peers included
    config         the options, without folders
    corpus         languages, shards, documents, tokens, median_length, vocab_size, delivered_tokens (of a pass)
    rows           one object for each provider:
      provider, side (ours for UniBERT, stage, peer), setting (fixed, usual, bulk), option (the fastest), processes
      status       ran; or not run, failed, with ``why`` instead of figures
      tokens, padding_share, seconds, seconds_min, tokens_per_second, tokens_per_second_max, tokens_per_cpu_second,
      first_batch_seconds, memory_bytes      of a pass: medians over the rounds, the maximum for memory
    tuning         tokens per second of each option, or the reason why it failed
    runs           every pass of every round
    plan           seconds to resume by resume point, seconds and share of a step for planning
    resume         seconds to the first batch after a resume in the middle of the real corpus
    waits          for no and one loader process, with and without the shards in the page cache: see `measure_waits`

``results.csv`` holds the rows, and ``results.png`` plots them.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unibert.bench.result_files import FORMAT, write_results
from unibert.bench.stream.config import StreamBenchConfig
from unibert.bench.stream.providers import STREAM_PROVIDERS
from unibert.bench.stream.results import COLUMNS, show_stream_results
from unibert.bench.stream.work import StreamProvider, Work
from unibert.bench.stream.worker import Job
from unibert.bench.worker_process import required, run_worker
from unibert.configuration import to_dict
from unibert.corpus.manifest import Manifest
from unibert.environment import describe_environment, package_versions
from unibert.errors import UserError

WORKER = "unibert.bench.stream.worker"
PEER_PACKAGES = ("mosaicml-streaming", "datasets", "pyarrow")
FOLDERS = ("corpus", "work", "output")

Row = dict[str, Any]


def bench_stream(config: StreamBenchConfig) -> dict[str, Any]:
    """Measure all providers, print the table and the goals, and write the results.

    Returns:
        the content of results.json.

    Raises:
        UserError: if the corpus is unusable, no provider matches ``providers``, or a folder cannot be written.
    """
    manifest = Manifest.load(config.corpus)
    if not manifest.languages:
        raise UserError(f"{config.corpus}: the corpus has no train shards; build it from more text")
    providers = [provider for provider in STREAM_PROVIDERS if _matches(provider.name, config.providers)]
    if not providers:
        available = ", ".join(provider.name for provider in STREAM_PROVIDERS)
        words = ", ".join(config.providers or [])
        raise UserError(f"providers: no provider matches {words}; available are {available}")
    environment = describe_environment()
    environment["peers"] = package_versions(PEER_PACKAGES)
    results: dict[str, Any] = {
        "format": FORMAT,
        "benchmark": "stream",
        "environment": environment,
        "config": {key: value for key, value in to_dict(config).items() if key not in FOLDERS},
    }
    if config.work is not None:
        config.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unibert-bench-", dir=config.work) as folder:
        work = Work(
            corpus=str(Path(config.corpus).absolute()),
            folder=folder,
            sequence_length=config.sequence_length,
            batch_size=config.batch_size,
            masking_rate=config.masking_rate,
            seed=config.seed,
        )
        results["corpus"] = _run_required(Job(task="sequences", work=asdict(work)))
        results |= _measure(providers, work, config, results["corpus"]["delivered_tokens"])
        if config.plan:
            print("planning and resuming", flush=True)
            results["plan"] = _run_required(Job(task="plan"))
            results["resume"] = _run_required(Job(task="resume", work=asdict(work)))
        if config.waits_seconds:
            print("waiting for data at a steady pace", flush=True)
            job = Job(task="waits", work=asdict(work), seconds=config.waits_seconds)
            results["waits"] = _run_required(job)["waits"]
    write_results(results, config.output, COLUMNS)
    show_stream_results(results, config.output)
    return results


def _matches(name: str, words: Sequence[str] | None) -> bool:
    return words is None or any(word in name for word in words)


def _measure(
    providers: Sequence[StreamProvider], work: Work, config: StreamBenchConfig, tokens: int
) -> dict[str, list[Row]]:
    """Rows, tuning and runs. Providers run in rounds, since a machine's speed drifts."""
    options: dict[str, str] = {}
    missing: dict[str, Row] = {}
    tuning: list[Row] = []
    runs: list[Row] = []
    prepared: dict[Callable[[Work], None], Row] = {}
    for provider in providers:
        name = provider.name
        if provider.side == "peer":
            print(f"preparing {name}", flush=True)
        job = Job(task="tune", work=asdict(work), provider=name, tokens=tokens, seconds=config.tuning_seconds)
        result: Row = {}
        if provider.prepare is not None:
            if provider.prepare not in prepared:
                prepared[provider.prepare] = run_worker(
                    WORKER, asdict(Job(task="prepare", work=asdict(work), provider=name))
                )
            result = prepared[provider.prepare]
        if "why" not in result and provider.side == "peer":
            result = run_worker(WORKER, asdict(job))
        if "why" in result:
            missing[name] = result
            continue
        rates: dict[str, float] = result.get("rates", {})
        options[name] = max(rates, key=lambda option: rates[option], default="")
        tuning += [{"provider": name, "option": option, "tokens_per_second": rate} for option, rate in rates.items()]
        tuning += [
            {"provider": name, "option": option, "why": why} for option, why in result.get("failures", {}).items()
        ]
    for number in range(config.repeats):
        print(f"round {number + 1} of {config.repeats}", flush=True)
        for name, option in options.items():
            if name in missing:
                continue
            job = Job(task="pass", work=asdict(work), provider=name, option=option, tokens=tokens)
            run = run_worker(WORKER, asdict(job))
            if "why" in run:
                missing[name] = run
                print(f"  {name}: {run['status']}: {run['why']}", flush=True)
            else:
                runs.append({"provider": name, "round": number} | run)
                print(f"  {name}: {run['tokens'] / run['seconds'] / 1e6:.2f} M tokens/s", flush=True)
    rows = []
    for provider in providers:
        name = provider.name
        row: Row = {
            "provider": name,
            "side": provider.side,
            "setting": provider.setting,
            "option": options.get(name, ""),
            "processes": provider.processes,
        }
        provider_runs = [run for run in runs if run["provider"] == name]
        rows.append(row | (missing[name] if name in missing else {"status": "ran"} | _summary(provider_runs)))
    return {"rows": rows, "tuning": tuning, "runs": runs}


def _summary(runs: Sequence[Row]) -> Row:
    def median(key: str) -> float:
        return statistics.median(run[key] for run in runs)

    summary = {key: median(key) for key in ("tokens", "padding_share", "seconds", "first_batch_seconds")} | {
        "seconds_min": min(run["seconds"] for run in runs),
        "tokens_per_second": statistics.median(run["tokens"] / run["seconds"] for run in runs),
        "tokens_per_second_max": max(run["tokens"] / run["seconds"] for run in runs),
        "tokens_per_cpu_second": statistics.median(run["tokens"] / run["cpu_seconds"] for run in runs),
    }
    if all("memory_bytes" in run for run in runs):
        summary["memory_bytes"] = max(run["memory_bytes"] for run in runs)
    return summary


def _run_required(job: Job) -> Row:
    """Run a job that the benchmark cannot do without.

    Raises:
        UserError: if the job fails.
    """
    return required(job.task, run_worker(WORKER, asdict(job)))
