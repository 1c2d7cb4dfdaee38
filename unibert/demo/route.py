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
    """Run what is not yet complete in ``config.output``, then print a table of results and the paths of what was made.

    Raises:
        UserError: if a stage fails; names its log.
    """
    started = time.perf_counter()
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    ranks = _possible_ranks(config.ranks)
    corpus, teacher, student = output / "corpus", output / "teacher", output / "student"
    if not (corpus / "manifest.json").exists():
        _say("1/5  corpus: 12 wiki dumps → clean documents → tokenizer → shards")
        _build_corpus(corpus)
    write_aligned(output / "aligned")
    _say(f"2/5  teacher: masked language modelling, {ranks} ranks")
    _pretrain("demo-teacher", teacher, corpus, ranks)
    _say(f"3/5  student: masked language modelling + language adversary + distillation, {ranks} ranks")
    _pretrain("demo", student, corpus, ranks, f"--distillation.teacher={teacher / 'model'}")
    _say("4/5  evaluation: sentence retrieval and language probe, untrained and trained")
    _evaluate(student, output / "aligned")
    _say("5/5  report")
    from unibert.reports.run_page import write_report
    from unibert.reports.summary import format_summary, write_summary

    report = write_report(student)
    print("\n" + format_summary(write_summary(student)))
    print(f"\nreport   {report}\nmetrics  {student / 'metrics.jsonl'}\ncorpus   {corpus / 'report.md'}")
    print(f"done in {(time.perf_counter() - started) / 60:.1f} minutes")
    print(
        f"The model is in {student / 'model'}. Next, with your own text: unibert corpus build INPUT … --output corpus"
    )


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
    log = run_dir.with_suffix(".log")
    words = ["pretrain", preset, f"--run_dir={run_dir}", f"--corpus={corpus}", *overrides]
    command = launcher_command("unibert", words, ranks=ranks)
    with log.open("w") as file:
        training = subprocess.Popen(command, stdout=file, start_new_session=True)
        status = _wait_or_end(training)
    if status:
        raise UserError(f"training in {run_dir} ended with status {status}; its log is {log}")


def _wait_or_end(launcher: subprocess.Popen[bytes]) -> int:
    """The launcher's status. Ctrl-C, SIGTERM or a lost terminal asks the ranks to save and stop, and ends the demo."""
    # Under nohup SIGHUP is ignored, and stays so.
    ends = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in ends:
        signal.signal(number, signal.default_int_handler)
    try:
        return launcher.wait()
    except KeyboardInterrupt:
        # All of them, for the launcher's own parent would die and leave the rest.
        os.killpg(launcher.pid, signal.SIGINT)
        launcher.wait()
        raise UserError("stopped; the same command continues") from None
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)


def _evaluate(student: Path, aligned: Path) -> None:
    from unibert.evaluation.config import EvaluateConfig
    from unibert.evaluation.evaluate import evaluate

    config = EvaluateConfig(model=student / "model", retrieval=aligned, untrained=True, output=student / "evaluation")
    # Its tables of every layer and language are for those who ask; they are kept in scores.md.
    with redirect_stdout(io.StringIO()):
        evaluate(config)


def _possible_ranks(wanted: int) -> int:
    """One process per GPU where there are any."""
    import torch

    return min(wanted, torch.cuda.device_count()) if torch.cuda.is_available() else wanted
