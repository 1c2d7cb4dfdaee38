"""``unibert bench train``: UniBERT's trainer beside other trainers, and without each of its optimisations.

The JSON file::

    benchmark    train
    environment  device, cores, versions of Python and packages, those of the peers included
    config       the options, without folders
    flops_per_token  model FLOPs of a step for each of its tokens, see `unibert.training.utilisation`
    peak_flops   FLOP/s of the fastest matrix product of all ranks, the highest over the rounds
    rows         one object for each provider:
      name, side (ours, peer, ablation), status (ran; or not run, failed, with ``why`` instead of figures)
      tokens_per_second (with _min and _max), tokens_per_cpu_second, mfu, seconds_per_step, first_step_seconds,
      parts (seconds of a step by part, where the provider can tell), peak_bytes
      communication  of the whole trainer on several ranks, by operation: calls, bytes and seconds of a step, which are
                     contained in the parts
      loss_difference  of an ablation: the largest relative difference of a step's loss from that of the whole module
    runs         every run of every round, with its losses where the provider has them, and the peak measured after it

Figures are medians over the rounds; peak_bytes are the maximum. tokens_per_second counts tokens without padding. Times
of a step are those of the slowest rank, tokens and peak_bytes the sums of all; a GPU's peak_bytes are what torch
allocates there, a CPU's the resident set. first_step_seconds run from the start of the process, imports included.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unibert.bench.result_files import write_result_file
from unibert.bench.training.config import TrainBenchConfig
from unibert.bench.training.provider import TrainProvider
from unibert.bench.training.results import MODULE, draw_train_results, format_train_results
from unibert.bench.training.work import LANGUAGES, TrainWork
from unibert.bench.training.worker import PROVIDERS, Job
from unibert.bench.worker_process import required, run_worker
from unibert.configuration import to_dict
from unibert.environment import describe_environment, package_versions
from unibert.errors import UserError
from unibert.model.config import AdversaryConfig
from unibert.model.cost import EncoderShape, flops_by_part

WORKER = "unibert.bench.training.worker"
PEER_PACKAGES = ("accelerate",)

Row = dict[str, Any]


def bench_train(config: TrainBenchConfig) -> Row:
    """Measure all providers in rounds, print the table and the goals, and write the results.

    Returns:
        the content of the file.

    Raises:
        UserError: if no provider matches ``providers``, or the file cannot be written.
    """
    providers = [
        provider
        for provider in PROVIDERS
        if (config.ablation or provider.side != "ablation")
        and (config.providers is None or any(word in provider.name for word in config.providers))
        and (provider.max_ranks is None or config.ranks <= provider.max_ranks)
    ]
    if not providers:
        available = ", ".join(provider.name for provider in PROVIDERS)
        raise UserError(
            f"providers: no provider matches {', '.join(config.providers or [])}; available are {available}"
        )
    environment = describe_environment()
    environment["peers"] = package_versions(PEER_PACKAGES)
    with tempfile.TemporaryDirectory(prefix="unibert-bench-") as folder:
        work = _work(config, Path(folder))
        required("corpus", run_worker(WORKER, asdict(Job(task="corpus", work=asdict(work)))))
        runs: list[Row] = []
        failed: dict[str, Row] = {}
        for number in range(config.repeats):
            print(f"round {number + 1} of {config.repeats}", flush=True)
            # Each round begins with another provider, so that none always follows the same one.
            for provider in providers[number % len(providers) :] + providers[: number % len(providers)]:
                if provider.name in failed:
                    continue
                run = _run(provider, work)
                if "why" in run:
                    failed[provider.name] = run
                    print(f"  {provider.name}: {run['status']}: {run['why']}", flush=True)
                else:
                    runs.append({"name": provider.name, "round": number} | run)
                    print(f"  {provider.name}: {run['tokens'] / run['seconds']:,.0f} tokens/s", flush=True)
    flops, peak = _flops_per_token(work), max((run["peak_flops"] for run in runs), default=0.0)
    losses = next((run["losses"] for run in runs if run["name"] == MODULE), None)
    rows = []
    for provider in providers:
        own = [run for run in runs if run["name"] == provider.name]
        row: Row = {"name": provider.name, "side": provider.side}
        row |= failed.get(provider.name) or {"status": "ran"} | _summary(own, work, flops / peak)
        if provider.side == "ablation" and own and losses is not None:
            pairs = zip(losses, own[0]["losses"], strict=True)
            row["loss_difference"] = max(abs(one - other) / abs(one) for one, other in pairs)
        rows.append(row)
    results: Row = {
        "benchmark": "train",
        "environment": environment,
        "config": {key: value for key, value in to_dict(config).items() if key != "output"},
        "flops_per_token": flops,
        "peak_flops": peak,
        "rows": rows,
        "runs": runs,
    }
    write_result_file(results, config.output)
    print(format_train_results(results))
    draw_train_results(results, config.output.with_suffix(".png"))
    print(f"results  {config.output}")
    return results


def _work(config: TrainBenchConfig, folder: Path) -> TrainWork:
    own = {key: value for key, value in vars(config).items() if key in TrainWork.__dataclass_fields__}
    places = {"corpus": str(folder / "corpus"), "run_dir": str(folder / "run")}
    return TrainWork(**own | places | {"micro_batches": 1, "threads": config.threads_per_rank})


def _run(provider: TrainProvider, work: TrainWork) -> Row:
    job = Job(task="train", work=asdict(work), provider=provider.name, started=time.time())
    return run_worker(WORKER, asdict(job), keeps_memory=provider.keeps_memory)


def _flops_per_token(work: TrainWork) -> float:
    shape = EncoderShape.modernbert(work.hidden_size, work.layers, work.intermediate_size, work.vocab_size)
    flops = flops_by_part(
        shape,
        length=min(work.document_length, work.sequence_length),
        masked=work.masking_rate,
        masks=False,
        recompute=0.0,
        adversary=AdversaryConfig(),
        num_languages=len(LANGUAGES),
        documents_per_token=1 / work.document_length,
    )
    return sum(flops.values())


def _summary(runs: Sequence[Row], work: TrainWork, mfu_of_rate: float) -> Row:
    rates = [run["tokens"] / run["seconds"] for run in runs]
    rate = statistics.median(rates)
    summary: Row = {
        "tokens_per_second": rate,
        "tokens_per_second_min": min(rates),
        "tokens_per_second_max": max(rates),
        "tokens_per_cpu_second": statistics.median(run["tokens"] / run["cpu_seconds"] for run in runs),
        "mfu": rate * mfu_of_rate,
        "seconds_per_step": statistics.median(run["seconds"] for run in runs) / work.steps,
        "first_step_seconds": statistics.median(run["first_step_seconds"] for run in runs),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
    }
    if all("parts" in run for run in runs):
        names = runs[0]["parts"]
        summary["parts"] = {name: statistics.median(run["parts"].get(name, 0.0) for run in runs) for name in names}
    if all("communication" in run for run in runs):
        summary["communication"] = {
            operation: {key: statistics.median(run["communication"][operation][key] for run in runs) for key in figures}
            for operation, figures in runs[0]["communication"].items()
        }
    return summary
