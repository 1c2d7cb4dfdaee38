"""``unibert bench scaling``: steps of the trainer on one rank and on several, under each ZeRO stage.

The JSON file::

    benchmark    scaling
    environment  device, cores, versions of Python and packages
    config       the options, without folders
    parameters   number of trained elements
    link         seconds of the ranks' messages, and of copies of gradients (flatten): operation, bytes of the whole
                 tensor, seconds
    rows         one object for each case:
      name, ranks, copies, micro_batches, ds_config, status (ran; or failed, with ``why`` instead of figures)
      seconds_per_step (with _min and _max), parts (seconds of a step by part), peak_bytes (of a rank)
      tokens_per_second  of all ranks or copies
      communication  by operation, of a step: calls, bytes of the whole tensors and seconds, contained in the parts
      predicted      of several ranks: passes, copies, update, exchange (seconds), see
                     `unibert.bench.scaling.prediction`; bytes, by operation as ``communication`` names it
    runs         every run of every round

Figures are medians over the rounds, those of several copies means; peak_bytes are the maximum.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from unibert.bench.result_files import write_result_file
from unibert.bench.scaling.cases import STAGES, Case, all_cases, single
from unibert.bench.scaling.config import ScalingBenchConfig
from unibert.bench.scaling.prediction import fitted_link, flattening_rate, predict, traffic_of_case
from unibert.bench.scaling.results import draw_scaling_results, format_scaling_results
from unibert.bench.training.results import TRAINER
from unibert.bench.training.work import LANGUAGES, TrainWork
from unibert.bench.training.worker import Job
from unibert.bench.worker_process import required, run_worker
from unibert.configuration import to_dict
from unibert.environment import describe_environment
from unibert.errors import UserError
from unibert.model.config import AdversaryConfig, MLMConfig
from unibert.model.unibert import UniBERT
from unibert.planning.step_time import PASSES, num_modules_with_parameters

WORKER, LINK = "unibert.bench.training.worker", "unibert.bench.scaling.link"
MASKING_RATE, DOCUMENT_LENGTH = 0.15, 100
LOGGED_AS = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather_into_tensor",
    "reduce_scatter": "reduce_scatter_tensor",
}
"""DeepSpeed's names of the operations."""

Row = dict[str, Any]


def bench_scaling(config: ScalingBenchConfig) -> Row:
    """Measure the cases in rounds, print tables with what predicts them, and write the results.

    Returns:
        the content of the file.

    Raises:
        UserError: if no case matches ``cases``, the link cannot be measured, or the file cannot be written.
    """
    cases = _cases(config)
    runs: list[Row] = []
    links: list[list[Row]] = []
    with tempfile.TemporaryDirectory(prefix="unibert-bench-") as name:
        folder = Path(name)
        work = _work(config, folder)
        required("corpus", run_worker(WORKER, asdict(Job(task="corpus", work=asdict(work)))))
        for number in range(config.repeats):
            print(f"round {number + 1} of {config.repeats}", flush=True)
            job = {"ranks": config.ranks, "threads": config.threads_per_rank, "pause": config.pause}
            link = run_worker(LINK, job, keeps_memory=True)
            links.append(required("link", link)["rows"])
            # Each round begins with another case, so that none always follows the same one.
            for case in cases[number % len(cases) :] + cases[: number % len(cases)]:
                run = _run(case, work, folder)
                runs.append({"name": case.name, "round": number} | run)
                seconds = run["why"] if "why" in run else f"{1e3 * run['seconds'] / work.steps:,.0f} ms a step"
                print(f"  {case.name}: {seconds}", flush=True)
    model = UniBERT(work.model(), len(LANGUAGES), mlm=MLMConfig(), adversary=AdversaryConfig())
    results: Row = {
        "benchmark": "scaling",
        "environment": describe_environment(),
        "config": {key: value for key, value in to_dict(config).items() if key != "output"},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "link": [
            {**rows[0], "seconds": statistics.median(row["seconds"] for row in rows)}
            for rows in zip(*links, strict=True)
        ],
        "rows": [_summary(case, [run for run in runs if run["name"] == case.name], work) for case in cases],
        "runs": runs,
    }
    _add_predictions(results, cases, model)
    write_result_file(results, config.output)
    print(format_scaling_results(results))
    draw_scaling_results(results, config.output.with_suffix(".png"))
    print(f"results  {config.output}")
    return results


def _cases(config: ScalingBenchConfig) -> list[Case]:
    available = list(all_cases(config.ranks, config.micro_batches))
    if config.cases is None:
        return available
    chosen = [case for case in available if any(word in case.name for word in config.cases)]
    if not chosen:
        names = ", ".join(case.name for case in available)
        raise UserError(f"cases: no case matches {', '.join(config.cases)}; available are {names}")
    stages = {"zero0", *(case.ds_config for case in chosen)} if any(case.ranks > 1 for case in chosen) else set()
    return [
        *(single(config.ranks, stage) for stage in STAGES if stage in stages),
        *(c for c in chosen if c.copies == 1),
    ]


def _work(config: ScalingBenchConfig, folder: Path) -> TrainWork:
    own = {key: value for key, value in vars(config).items() if key in TrainWork.__dataclass_fields__}
    own |= {"corpus": str(folder / "corpus"), "run_dir": "", "ds_config": "", "threads": config.threads_per_rank}
    return TrainWork(**own, masking_rate=MASKING_RATE, document_length=DOCUMENT_LENGTH)


def _run(case: Case, work: TrainWork, folder: Path) -> Row:
    """Run a case, all of its copies at the same time; return the means of their figures."""
    work = replace(work, ranks=case.ranks, micro_batches=case.micro_batches, ds_config=case.write_ds_config(folder))

    def run_copy(number: int) -> Row:
        own = replace(work, run_dir=tempfile.mkdtemp(dir=folder))
        job = Job(task="train", work=asdict(own), provider=TRAINER, started=time.time())
        gpu = number if case.copies > 1 and torch.cuda.is_available() else None
        return run_worker(WORKER, asdict(job), keeps_memory=True, gpu=gpu)

    with ThreadPoolExecutor(case.copies) as pool:
        results = list(pool.map(run_copy, range(case.copies)))
    if failed := [result for result in results if "why" in result]:
        return failed[0]
    means = {key: statistics.mean(result[key] for result in results) for key in ("seconds", "peak_bytes")}
    parts = {
        part: statistics.mean(result["parts"].get(part, 0.0) for result in results) for part in results[0]["parts"]
    }
    return results[0] | means | {"tokens": sum(result["tokens"] for result in results), "parts": parts}


def _summary(case: Case, runs: Sequence[Row], work: TrainWork) -> Row:
    own = ("name", "ranks", "copies", "micro_batches", "ds_config")
    row: Row = {key: getattr(case, key) for key in own}
    if failed := [run for run in runs if "why" in run]:
        return row | {"status": "failed", "why": failed[0]["why"]}
    times = [run["seconds"] / work.steps for run in runs]
    row |= {
        "status": "ran",
        "seconds_per_step": statistics.median(times),
        "seconds_per_step_min": min(times),
        "seconds_per_step_max": max(times),
        "tokens_per_second": statistics.median(run["tokens"] / run["seconds"] for run in runs),
        "parts": {part: statistics.median(run["parts"][part] for run in runs) for part in runs[0]["parts"]},
        "peak_bytes": max(run["peak_bytes"] for run in runs) / case.ranks,
    }
    if case.ranks > 1:
        row["communication"] = {
            operation: {
                "calls": figures["calls"],
                # DeepSpeed logs a rank's share of what is gathered.
                "bytes": figures["bytes"] * (case.ranks if operation == LOGGED_AS["all_gather"] else 1),
                "seconds": statistics.median(run["communication"][operation]["seconds"] for run in runs),
            }
            for operation, figures in runs[0]["communication"].items()
        }
    return row


def _add_predictions(results: Row, cases: Sequence[Case], model: UniBERT) -> None:
    rows = {row["name"]: row for row in results["rows"] if row["status"] == "ran"}
    ranks = results["config"]["ranks"]
    links = {operation: fitted_link(results["link"], operation, ranks) for operation in PASSES}
    flattening = flattening_rate(results["link"])
    singles = {stage: rows[single(ranks, stage).name]["parts"] for stage in STAGES if single(ranks, stage).name in rows}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = [parameter.numel() for parameter in model.parameters()]
    for case in cases:
        if case.ranks == 1 or case.name not in rows or not {"zero0", case.ds_config} <= singles.keys():
            continue
        traffic = traffic_of_case(case, device, sizes=sizes, modules=num_modules_with_parameters(model))
        rows[case.name]["predicted"] = {
            **asdict(predict(case, singles, traffic, links, flattening)),
            "bytes": {LOGGED_AS[part.operation]: part.num_bytes for part in traffic},
        }
