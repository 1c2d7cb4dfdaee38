"""``unibert demo``: corpus, teacher, student, evaluation and report, one after another."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

from unibert.demo.alignment import WIKI, write_aligned
from unibert.demo.config import DemoConfig
from unibert.errors import UserError
from unibert.launcher import launcher_command


def run_demo(config: DemoConfig) -> None:
    """Run the stages that are not complete in ``config.output``; print a table of results and the paths of the outputs.

    Raises:
        UserError: if a stage fails; the message names its log.
    """
    started = time.perf_counter()
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    ranks = _possible_ranks(config.ranks)
    corpus, teacher, student = output / "corpus", output / "teacher", output / "student"
    if not (corpus / "manifest.json").exists():
        _report_stage("1/5  corpus: 12 wiki dumps → clean documents → tokenizer → shards")
        _build_corpus(corpus)
    write_aligned(output / "aligned")
    _report_stage(f"2/5  teacher: masked language modelling, {ranks} ranks")
    _pretrain("demo-teacher", teacher, corpus, ranks)
    _report_stage(f"3/5  student: masked language modelling + language adversary + distillation, {ranks} ranks")
    _pretrain("demo", student, corpus, ranks, f"--distillation.teacher={teacher / 'model'}")
    _report_stage("4/5  evaluation: sentence retrieval and language probe, untrained and trained")
    _evaluate(student, output / "aligned")
    _report_stage("5/5  report")
    from unibert.reports.run_page import write_report
    from unibert.reports.summary import format_summary, write_summary

    report = write_report(student)
    print("\n" + format_summary(write_summary(student)))
    print(f"\nreport   {report}\nmetrics  {student / 'metrics.jsonl'}\ncorpus   {corpus / 'report.md'}")
    print(f"done in {(time.perf_counter() - started) / 60:.1f} minutes")
    print(
        f"The model is in {student / 'model'}. Next, with your own text: unibert corpus build INPUT … --output corpus"
    )


def _report_stage(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _build_corpus(corpus: Path) -> None:
    from unibert.corpus.build import build_corpus
    from unibert.corpus.config import CorpusConfig

    shutil.rmtree(corpus, ignore_errors=True)
    build_corpus(
        CorpusConfig(inputs=[str(WIKI)], output=str(corpus), vocab_size=6000, heldout_share=0.1, tokens_per_shard=2500)
    )


def _pretrain(preset: str, run_dir: Path, corpus: Path, ranks: int, *overrides: str) -> None:
    """Train with the deepspeed launcher. Standard output goes to a log, progress to the terminal."""
    log = run_dir.with_suffix(".log")
    arguments = ["pretrain", preset, f"--run_dir={run_dir}", f"--corpus={corpus}", *overrides]
    command = launcher_command("unibert", arguments, ranks=ranks)
    with log.open("w") as file:
        training = subprocess.Popen(command, stdout=file, start_new_session=True)
        status = _wait_or_stop(training)
    if status:
        raise UserError(f"training in {run_dir} ended with status {status}; its log is {log}")


def _wait_or_stop(launcher: subprocess.Popen[bytes]) -> int:
    """Return the launcher's status. Ctrl-C, SIGTERM or a lost terminal stops the ranks, which save, and the demo."""
    # Under nohup SIGHUP is ignored, and stays so.
    signals = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in signals:
        signal.signal(number, signal.default_int_handler)
    try:
        return launcher.wait()
    except KeyboardInterrupt:
        # The whole process group: the launcher's own parent process would die without stopping the others.
        os.killpg(launcher.pid, signal.SIGINT)
        launcher.wait()
        raise UserError("stopped; the same command continues") from None
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


def _evaluate(student: Path, aligned: Path) -> None:
    from unibert.evaluation.config import EvaluateConfig
    from unibert.evaluation.evaluate import evaluate

    config = EvaluateConfig(model=student / "model", retrieval=aligned, untrained=True, output=student / "evaluation")
    # The tables of every layer and language would be too much here; they are kept in scores.md.
    with redirect_stdout(io.StringIO()):
        evaluate(config)


def _possible_ranks(ranks: int) -> int:
    """Limit the number of ranks to that of the GPUs, if there are any."""
    import torch

    return min(ranks, torch.cuda.device_count()) if torch.cuda.is_available() else ranks
