"""``unibert demo``: corpus, teacher, student, ablations, evaluation and report, one after another."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from unibert.demo.alignment import HELDOUT_SHARE, WIKI, write_aligned
from unibert.demo.config import DemoConfig
from unibert.errors import UserError
from unibert.files import write_json
from unibert.launcher import launcher_command

_WITHOUT_ADVERSARY, _WITHOUT_DISTILLATION = "no-adversary", "no-distillation"


@dataclass(frozen=True)
class Folders:
    """The parts of the demo's folder."""

    output: Path

    @property
    def e5(self) -> Path:
        """multilingual-e5-small as a Hugging Face folder; missing if the demo trains its own teacher."""
        return self.output / "e5"

    @property
    def corpus(self) -> Path:
        return self.output / "corpus"

    @property
    def teacher(self) -> Path:
        """The teacher that the student learns from, in ``model``."""
        return self.output / "teacher"

    @property
    def start(self) -> Path:
        """The student before training, if it begins with layers of the teacher."""
        return self.output / "start"

    @property
    def student(self) -> Path:
        return self.output / "student"

    @property
    def aligned(self) -> Path:
        return self.output / "aligned"


def run_demo(config: DemoConfig) -> None:
    """Run the stages that are not complete in ``config.output``; print a table of results and the paths of the outputs.

    The teacher is multilingual-e5-small where its package is installed, else a small model that the demo trains. A demo
    that was stopped continues with the teacher that it began with.

    Raises:
        UserError: if a stage fails; the message names its log.
    """
    started = time.perf_counter()
    folders = Folders(Path(config.output))
    folders.output.mkdir(parents=True, exist_ok=True)
    ranks = _possible_ranks(config.ranks)
    has_corpus = (folders.corpus / "manifest.json").exists()
    if folders.e5.exists() or (not has_corpus and _write_e5(folders.e5)):
        preset = "demo-e5"
        _prepare_e5(folders)
    else:
        preset = "demo"
        _train_teacher(folders, ranks)
    write_aligned(folders.aligned)
    write_aligned(folders.output / "aligned-heldout", heldout=True)
    options = [f"--distillation.teacher={folders.teacher / 'model'}"]
    if preset == "demo-e5":
        options.append(f"--model.initialize_from={folders.teacher / 'model'}")
        _write_start(preset, options, folders)
    _report_stage(f"3/5  student: masked language modelling + language adversary + distillation, {ranks} ranks")
    _pretrain(preset, folders.student, folders.corpus, ranks, *options)
    _report_stage("4/5  ablations: the student without adversary, then without distillation")
    _pretrain(preset, folders.output / _WITHOUT_ADVERSARY, folders.corpus, ranks, *options, "--adversary.max_lambda=0")
    _pretrain(preset, folders.output / _WITHOUT_DISTILLATION, folders.corpus, ranks, *options, "--distillation=null")
    _report_stage("5/5  evaluation and report: sentence retrieval and language probe of every model")
    models = _evaluate(folders, last_layer=preset == "demo-e5")
    from unibert.demo.results import collect_results, format_results
    from unibert.reports.run_page import write_report
    from unibert.reports.summary import write_summary

    report = write_report(folders.student)
    write_summary(folders.student)
    results = collect_results(models, "student")
    minutes = (time.perf_counter() - started) / 60
    write_json(folders.output / "results.json", {**results, "preset": preset, "minutes": round(minutes, 1)})
    print("\n" + format_results(results))
    print(f"\nreport   {report}\nresults  {folders.output / 'results.json'}\ncorpus   {folders.corpus / 'report.html'}")
    print(f"done in {minutes:.1f} minutes")
    print(
        f"The model is in {folders.student / 'model'}. Next, with your own text: unibert corpus build INPUT … "
        "--output corpus"
    )


def _report_stage(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write_e5(folder: Path) -> bool:
    """Write multilingual-e5-small into a folder; return whether its package is installed."""
    from unibert.demo.e5_teacher import PACKAGE, RELEASE, find_e5_file, write_e5_folder

    file = find_e5_file()
    if file is None:
        _report_stage(
            f"{PACKAGE} is not installed, so the demo trains a small teacher of its own; with pip install "
            f"{PACKAGE}=={RELEASE} and another --output the student learns from multilingual-e5-small"
        )
        return False
    _report_stage(f"unpacking the teacher, multilingual-e5-small, from the package {PACKAGE}")
    write_e5_folder(file, folder)
    return True


def _prepare_e5(folders: Folders) -> None:
    """Build the corpus with the teacher's tokenizer, and trim both to the pieces that the corpus has."""
    from unibert.model.trim import trim_model

    if not (folders.corpus / "manifest.json").exists():
        _report_stage("1/5  corpus: 12 wiki dumps → clean documents → the teacher's tokenizer, trimmed → shards")
        _build_corpus(folders.corpus, folders.e5)
    if not (folders.teacher / "model").exists():
        _report_stage("2/5  teacher: multilingual-e5-small with the pieces of the corpus")
        folders.teacher.mkdir(exist_ok=True)
        with redirect_stdout(sys.stderr):
            trim_model(str(folders.e5), folders.corpus, folders.teacher / "model")


def _train_teacher(folders: Folders, ranks: int) -> None:
    if not (folders.corpus / "manifest.json").exists():
        _report_stage("1/5  corpus: 12 wiki dumps → clean documents → tokenizer → shards")
        _build_corpus(folders.corpus, None)
    _report_stage(f"2/5  teacher: masked language modelling, {ranks} ranks")
    _pretrain("demo-teacher", folders.teacher, folders.corpus, ranks)


def _write_start(preset: str, options: list[str], folders: Folders) -> None:
    """Write the student as its training begins."""
    import torch

    from unibert.configuration import parse
    from unibert.corpus.manifest import Manifest
    from unibert.installation import unibert_version
    from unibert.model.corpus_counts import language_counts
    from unibert.model.encoder import build_masked_lm
    from unibert.model.export import write_model_folder
    from unibert.model_card import Pretraining, model_name
    from unibert.run_files import PRESETS
    from unibert.training.config import RunConfig

    if (folders.start / "model").exists():
        return
    config = parse(RunConfig, ["--config", str(PRESETS / f"{preset}.yaml"), *options])
    manifest, tokenizer = Manifest.load(folders.corpus), folders.corpus / "tokenizer"
    torch.manual_seed(config.seed)
    student = build_masked_lm(
        config.model,
        manifest.vocab_size,
        config.training.timeline()[0].sequence_length,
        special_ids=manifest.special_ids,
        tokenizer_dir=tokenizer,
    )
    folders.start.mkdir(exist_ok=True)
    origin = Pretraining(
        name="start",
        languages=language_counts(manifest),
        trainer=f"UniBERT {unibert_version()}",
        steps=0,
        tokens=0,
        masked_lm=True,
        initial_model=model_name(str(config.model.initialize_from)),
        initial_layers=config.model.initialize_layers,
    )
    write_model_folder(student, tokenizer, folders.start / "model", origin)


def _build_corpus(corpus: Path, teacher: Path | None) -> None:
    """Build the corpus with the teacher's tokenizer, or with one of its own."""
    from unibert.corpus.build import build_corpus
    from unibert.corpus.config import CorpusConfig
    from unibert.reports.corpus_page import write_corpus_page

    shutil.rmtree(corpus, ignore_errors=True)
    config = CorpusConfig(
        inputs=[str(WIKI)],
        output=str(corpus),
        vocab_size=6000,
        tokenizer=None if teacher is None else str(teacher),
        # Room for every piece that the text has, so that it segments as with the teacher's whole vocabulary.
        trim_vocabulary=None if teacher is None else 32_000,
        heldout_share=HELDOUT_SHARE,
        tokens_per_shard=2500,
    )
    build_corpus(config)
    write_corpus_page(corpus)


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


def _evaluate(folders: Folders, *, last_layer: bool) -> dict[str, Path]:
    """Score all models by the vectors of one layer; return their folders by their names in the table.

    Args:
        folders: the demo's folders.
        last_layer: whether the last layer represents a model, as is right for students of a sentence encoder, whose
            last layer is pooled; else the middle one does, since the last is busy with predicting tokens.
    """
    from unibert.evaluation.config import EvaluateConfig
    from unibert.evaluation.evaluate import evaluate

    models = {
        "student before training": folders.start,
        "student": folders.student,
        "student without adversary": folders.output / _WITHOUT_ADVERSARY,
        "student without distillation": folders.output / _WITHOUT_DISTILLATION,
        "teacher": folders.teacher,
    }
    models = {name: folder for name, folder in models.items() if folder.exists()}
    for folder in models.values():
        num_layers = _num_layers(folder)
        scored = num_layers - 1 if last_layer else num_layers // 2
        config = EvaluateConfig(
            model=folder / "model",
            retrieval=folders.aligned,
            untrained=folder == folders.student,
            probe_sentences=100,
            probe_restarts=1,
            # The student's report shows every layer.
            layers=[scored, *range(num_layers)] if folder == folders.student else [scored],
            output=folder / "evaluation",
        )
        # The tables of every layer and language would be too much here; they are kept in scores.md.
        with redirect_stdout(io.StringIO()):
            evaluate(config)
    return models


def _num_layers(folder: Path) -> int:
    """Number of hidden states: the embeddings' output and that of every block."""
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    return int(config["num_hidden_layers"]) + 1


def _possible_ranks(ranks: int) -> int:
    """Limit the number of ranks to that of the GPUs, if there are any."""
    import torch

    return min(ranks, torch.cuda.device_count()) if torch.cuda.is_available() else ranks
