"""``unibert demo``: corpus, teacher, student, evaluation and report, one after another."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from unibert.demo.alignment import WIKI, write_aligned
from unibert.demo.config import DemoConfig
from unibert.errors import UserError


def run_demo(config: DemoConfig) -> None:
    """Run what is not yet complete in ``config.output``, then print a table of results and the paths of what was made.

    Raises:
        UserError: if a stage fails; names its log.
    """
    started = time.perf_counter()
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    corpus, teacher, student = output / "corpus", output / "teacher", output / "student"
    if not (corpus / "manifest.json").exists():
        _say("1/5  corpus: 12 wiki dumps → clean documents → tokenizer → shards")
        _build_corpus(corpus)
    write_aligned(output / "aligned")
    _say(f"2/5  teacher: masked language modelling, {config.ranks} ranks")
    _pretrain("demo-teacher", teacher, corpus, config.ranks)
    _say(f"3/5  student: masked language modelling + language adversary + distillation, {config.ranks} ranks")
    _pretrain("demo", student, corpus, config.ranks, f"--distillation.teacher={teacher / 'model'}")
    _say("4/5  evaluation: sentence retrieval and language probe, untrained and trained")
    _evaluate(student, output / "aligned")
    _say("5/5  report")
    from unibert.study.report import write_report

    report = write_report(student)
    print(results_table(student))
    print(f"\nmodel    {student / 'model'}\nreport   {report}\nmetrics  {student / 'metrics.jsonl'}")
    print(f"corpus   {corpus / 'report.md'}\ndone in {(time.perf_counter() - started) / 60:.1f} minutes")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _build_corpus(corpus: Path) -> None:
    from unibert.corpus.build import build_corpus
    from unibert.corpus.config import CorpusConfig

    shutil.rmtree(corpus, ignore_errors=True)
    build_corpus(
        CorpusConfig(inputs=[str(WIKI)], output=str(corpus), vocab_size=6000, heldout_share=0.1, tokens_per_shard=2500)
    )


def _pretrain(preset: str, run_dir: Path, corpus: Path, ranks: int, *overrides: str) -> None:
    """A run through the deepspeed launcher. Its chatter goes to a log, its progress to the terminal."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    log = run_dir.with_suffix(".log")
    command = [
        sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port", str(port),
        "--module", "unibert", "pretrain", preset, f"--run_dir={run_dir}", f"--corpus={corpus}", *overrides,
    ]  # fmt: skip
    with log.open("w") as file:
        finished = subprocess.run(command, stdout=file)
    if finished.returncode:
        raise UserError(f"training in {run_dir} ended with status {finished.returncode}; its log is {log}")


def _evaluate(student: Path, aligned: Path) -> None:
    from unibert.evaluation.evaluate import EvaluateConfig, evaluate

    evaluate(
        EvaluateConfig(
            model=student / "model", retrieval=aligned, untrained=True, output=student / "evaluation"
        )
    )  # fmt: skip


def results_table(run_dir: Path) -> str:
    """What the run has learned, in one table: a row a question, columns untrained, trained and chance."""
    from unibert.training.metrics import read_metrics

    lines = read_metrics(run_dir / "metrics.jsonl")
    heldout = next(line for line in reversed(lines) if "heldout_mlm_loss" in line)
    scores = json.loads((run_dir / "evaluation" / "scores.json").read_text(encoding="utf-8"))
    layer = str(scores["headline_layer"])

    rows: list[tuple[str, ...]] = [("", "untrained", "trained", "chance")]
    for question, chance, score in (
        ("translation found, top-1", scores["chance"]["retrieval"], _retrieval),
        ("language told by a fresh probe", scores["chance"]["probe"], _probe),
    ):
        for kind in ("raw", "centred"):
            shares = (score(scores["baseline"], layer, kind), score(scores["model"], layer, kind), chance)
            rows.append((f"{question}, {kind} vectors", *(f"{100 * share:.1f} %" for share in shares)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = []
    for question, *cells in rows:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        table.append("  ".join([question.ljust(widths[0]), *aligned]))
    table.insert(1, "-" * len(table[0]))
    unigram = heldout["unigram_entropy"]
    return "\n".join([
        f"held-out MLM loss {heldout['heldout_mlm_loss']:.2f} nats a token; word frequencies alone give {unigram:.2f}",
        f"sentence vectors of layer {layer}, {len(scores['data']['languages'])} languages",
        "",
        *table,
    ])  # fmt: skip


def _retrieval(part: dict[str, Any], layer: str, kind: str) -> float:
    return part["retrieval_mean"][layer][kind]


def _probe(part: dict[str, Any], layer: str, kind: str) -> float:
    # Centring alone takes a linear probe to chance; only this one can tell whether the language is really gone.
    return part["probe"][layer][kind]["mlp"]["mean"]
