"""``unibert bench corpus``: what it takes to make a corpus of dumps, and what cleaning keeps.

The JSON file::

    benchmark    corpus
    environment  device, cores, versions of Python and packages, those of the peers included
    config       the options, without folders
    inputs       name and bytes of each file
    cleaning     pages, wikitext_bytes, and rows: name, side (ours; stage: with more work; peer), processes, status
                 (ran; or not run, failed, with ``why`` instead of figures), seconds, cpu_seconds, peak_bytes,
                 mb_per_second, mb_per_cpu_second (with _min and _max; of the wikitext of which it has a text), quality
                 (see `unibert.bench.corpus.quality.Quality`: of all pages, and by language)
    text         documents, lines, text_bytes: what cleaning and the quality filters keep
    tokenising   rows: name, side, tokenizer, status, and as above of text
    build        same_bytes (whether all corpora are equal), and rows: name, ranks, status, seconds (with _min and
                 _max), cpu_seconds, peak_bytes, efficiency (t1 / (ranks · t), of the medians)
    runs         every run of every round

Figures are medians over the rounds; peak_bytes are the maximum.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from unibert.bench.corpus.builds import STARTS
from unibert.bench.corpus.cleaning import CLEANERS
from unibert.bench.corpus.config import CorpusBenchConfig, Part
from unibert.bench.corpus.results import format_corpus_results
from unibert.bench.corpus.tokenising import ENCODERS, PRETRAINED
from unibert.bench.corpus.worker import Job, Task
from unibert.bench.worker_process import required, run_worker
from unibert.configuration import to_dict
from unibert.corpus.inputs import find_inputs
from unibert.environment import describe_environment, package_versions
from unibert.errors import UserError
from unibert.files import write_json

WORKER = "unibert.bench.corpus.worker"
PACKAGES = ("wikiextractor", "tokenizers", "mwxml", "rensa", "mpi4py")
FOLDERS = ("inputs", "work", "output")

Row = dict[str, Any]


def bench_corpus(config: CorpusBenchConfig) -> Row:
    """Measure the parts, print tables and goals, and write the results.

    Returns:
        the content of the file.

    Raises:
        UserError: if the inputs cannot be used, the text does not allow the vocabulary, or the file cannot be written.
    """
    parts = config.parts or get_args(Part)
    files = find_inputs(config.inputs)
    others = [file.path for file in files if file.kind != "wiki"]
    if "cleaning" in parts and others:
        raise UserError(f"inputs: {others[0]} is no dump (.xml); leave it out, or name other parts than cleaning")
    environment = describe_environment()
    environment["peers"] = package_versions(PACKAGES)
    results: Row = {
        "benchmark": "corpus",
        "environment": environment,
        "config": {key: value for key, value in to_dict(config).items() if key not in FOLDERS},
        "inputs": [{"name": file.path.name, "bytes": file.path.stat().st_size} for file in files],
    }
    if config.pretrained is not None:
        results["config"]["pretrained"] = Path(config.pretrained).name
    try:
        for needed in filter(None, (config.work, config.output.parent)):
            needed.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="unibert-bench-", dir=config.work) as folder:
            work = _Work(config, Path(folder), [(str(file.path), file.language, file.kind) for file in files])
            if "cleaning" in parts:
                results["cleaning"] = work.cleaning()
            if {"tokenising", "build"}.intersection(parts):
                results["text"] = work.prepare()
            if "tokenising" in parts:
                results["tokenising"] = work.tokenising(results["text"]["text_bytes"])
            if "build" in parts:
                results["build"] = work.build()
        results["runs"] = work.runs
        write_json(config.output, results)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from error
    print(format_corpus_results(results))
    print(f"results  {config.output}")
    return results


class _Work:
    """The measurements, in a folder of their own."""

    def __init__(self, config: CorpusBenchConfig, folder: Path, files: list[tuple[str, str, str]]) -> None:
        self._config, self._folder, self._files = config, folder, files
        self.runs: list[Row] = []

    def prepare(self) -> Row:
        """Write documents and tokenizers; return the number of documents and the size of their text."""
        print("preparing documents and tokenizers", flush=True)
        return self._run_required(
            self._job("prepare", vocab_size=self._config.vocab_size, pretrained=self._config.pretrained)
        )

    def cleaning(self) -> Row:
        """Measure the cleaners, and compare what they have written in the last round."""
        folders = [self._folder / f"cleaned-{number}" for number in range(len(CLEANERS))]
        summaries = self._rounds(
            "cleaning",
            [cleaner.name for cleaner in CLEANERS],
            [self._job("clean", number=number, output=str(folder)) for number, folder in enumerate(folders)],
        )
        required(f"clean ({CLEANERS[0].name})", summaries[0])
        texts = {
            cleaner.name: str(folder)
            for cleaner, folder, summary in zip(CLEANERS, folders, summaries, strict=True)
            if cleaner.side != "stage" and summary["status"] == "ran"
        }
        print("comparing texts", flush=True)
        qualities = self._run_required(self._job("compare", texts=texts))
        own: Row = qualities[CLEANERS[0].name]
        rows = []
        for cleaner, summary in zip(CLEANERS, summaries, strict=True):
            row: Row = {"name": cleaner.name, "side": cleaner.side, "processes": cleaner.processes} | summary
            row |= _rates(summary, qualities.get(cleaner.name, own)["wikitext_bytes"])
            rows.append(row | ({"quality": qualities[cleaner.name]} if cleaner.name in qualities else {}))
        return {"pages": own["pages"], "wikitext_bytes": own["wikitext_bytes"], "rows": rows}

    def tokenising(self, text_bytes: int) -> Row:
        """Measure tokenising and sharding."""
        chosen = [
            (number, encoder)
            for number, encoder in enumerate(ENCODERS)
            if self._config.pretrained is not None or encoder.tokenizer != PRETRAINED
        ]
        output = self._folder / "shards"
        summaries = self._rounds(
            "tokenising",
            [f"{encoder.tokenizer}: {encoder.name}" for _, encoder in chosen],
            [self._job("tokenise", number=number, output=str(output)) for number, _ in chosen],
            emptied=output,
        )
        return {
            "rows": [
                {"name": encoder.name, "side": encoder.side, "tokenizer": encoder.tokenizer}
                | summary
                | _rates(summary, text_bytes)
                for (_, encoder), summary in zip(chosen, summaries, strict=True)
            ]
        }

    def build(self) -> Row:
        """Measure whole builds."""
        output = self._folder / "corpus"
        summaries = self._rounds(
            "build",
            [start.name for start in STARTS],
            [
                self._job("build", number=number, output=str(output), inputs=self._config.inputs)
                for number in range(len(STARTS))
            ],
            emptied=output,
        )
        rows = []
        alone = summaries[0].get("seconds")
        for start, summary in zip(STARTS, summaries, strict=True):
            row: Row = {"name": start.name, "ranks": start.ranks} | summary
            if start.ranks > 1 and "seconds" in row and alone is not None:
                row["efficiency"] = alone / (start.ranks * row["seconds"])
            rows.append(row)
        fingerprints = {run["fingerprint"] for run in self.runs if run["part"] == "build"}
        return {"same_bytes": len(fingerprints) <= 1, "rows": rows}

    def _rounds(self, part: Part, names: Sequence[str], jobs: Sequence[Job], emptied: Path | None = None) -> list[Row]:
        """Run the jobs in rounds, since a machine's speed drifts; return a summary or the failure of each.

        ``emptied`` is removed after each run.
        """
        failed: dict[str, Row] = {}
        for number in range(self._config.repeats):
            print(f"{part}: round {number + 1} of {self._config.repeats}", flush=True)
            for name, job in zip(names, jobs, strict=True):
                if name in failed:
                    continue
                run = run_worker(WORKER, asdict(job))
                if emptied is not None:
                    shutil.rmtree(emptied, ignore_errors=True)
                if "why" in run:
                    failed[name] = run
                    print(f"  {name}: {run['status']}: {run['why']}", flush=True)
                else:
                    self.runs.append({"part": part, "name": name, "round": number} | run)
                    print(f"  {name}: {run['seconds']:.1f} s, {run['cpu_seconds']:.1f} CPU s", flush=True)
        runs = {name: [run for run in self.runs if (run["part"], run["name"]) == (part, name)] for name in names}
        return [failed.get(name) or {"status": "ran"} | _summary(runs[name]) for name in names]

    def _job(self, task: Task, **values: Any) -> Job:
        return Job(task=task, folder=str(self._folder), files=self._files, **values)

    def _run_required(self, job: Job) -> Row:
        return required(job.task, run_worker(WORKER, asdict(job)))


def _summary(runs: Sequence[Row]) -> Row:
    summary: Row = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu_seconds")}
    for name, choose in (("min", min), ("max", max)):
        summary |= {f"{key}_{name}": choose(run[key] for run in runs) for key in ("seconds", "cpu_seconds")}
    if all("peak_bytes" in run for run in runs):
        summary["peak_bytes"] = max(run["peak_bytes"] for run in runs)
    return summary


def _rates(summary: Row, size: int) -> Row:
    """MB per second of a summary's times; nothing if it has none."""
    if summary["status"] != "ran":
        return {}
    return {
        "mb_per_second": size / 1e6 / summary["seconds"],
        "mb_per_cpu_second": size / 1e6 / summary["cpu_seconds"],
        "mb_per_cpu_second_min": size / 1e6 / summary["cpu_seconds_max"],
        "mb_per_cpu_second_max": size / 1e6 / summary["cpu_seconds_min"],
    }
