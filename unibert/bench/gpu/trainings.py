"""The parts of ``unibert bench gpu`` that train."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unibert.bench.gpu.short_training import PATHS, speed_of
from unibert.bench.gpu.turn import Outcome, Turn
from unibert.errors import UserError
from unibert.files import write_json
from unibert.training.checkpoint.folder import complete_checkpoints
from unibert.training.metrics_file import TIMING_KEYS, read_metrics

TRAINER_PACKAGES = ("deepspeed", "webdataset")
CORPUS_PACKAGES = ("mwxml", "mwparserfromhell", "sentencepiece", "zstandard")
BROUGHT_CORPUS = Path(".gpu-packages/demo-corpus")
"""Built by ``make gpu-packages``, so that a GPU machine need not have the packages that read dumps."""
WIKI = Path(__file__).parents[2] / "demo" / "wiki"
CORPUS_OPTIONS = ("--vocab_size=6000", "--heldout_share=0.1", "--tokens_per_shard=2500")
"""As the demo builds it."""
EARLY_STEPS, EARLY_TOLERANCE = 10, 5e-3
"""Largest relative difference of the first losses, before rounding has had time to grow: bf16's 2^-8 and a margin."""
LATE_STEPS, LATE_TOLERANCE = 20, 2e-2
"""Of the mean of the last losses."""
SECONDS_TO_START = 12.0
REHEARSED_RUN = ("--training.tokens=8192", "--training.heldout_sequences=4")
"""Two steps of the demo's teacher."""


def training(turn: Turn) -> Outcome:
    """A short training with each path; curves of the same objectives must agree."""
    results: dict[str, Any] = {}
    output = turn.folder / "training.json"
    with tempfile.TemporaryDirectory(prefix="unibert-bench-") as temporary:
        lines = Path(temporary) / "training.jsonl"
        lines.touch()
        while (missing := [name for name in PATHS if name not in results]) and turn.seconds > 1:
            # One process for all saves starting six; where one path ends it, another goes on with the rest.
            ended = turn.python(
                "-m",
                "unibert.bench.gpu.short_training",
                lines,
                "--device",
                turn.device,
                "--paths",
                *missing,
                "--seconds",
                max(1.0, turn.seconds - SECONDS_TO_START),
            )
            started = missing[0]
            for line in lines.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                started = record.get("started", started)
                if "name" in record:
                    results[record["name"]] = record["result"]
            if started not in results:
                results[started] = {"failed": ended.last_line}
            comparisons = compare_curves(results)
            write_json(output, {"runs": results, "curves": comparisons})
    for name in missing:
        results.setdefault(name, {"failed": "it was not reached in time"})
    details = [f"{name}: {speed_of(result)}" for name, result in results.items()]
    details += [
        f"{name} against chunked: first steps differ by {found['early']:.1e}, last by {found['late']:.1e}"
        f"{'' if found['agree'] else ', TOO MUCH'}"
        for name, found in comparisons.items()
    ]
    agreeing = sum(found["agree"] for found in comparisons.values())
    figure = f"{agreeing} of {len(comparisons)} curves agree with chunked"
    speeds = {name: result["tokens_per_second"] for name, result in results.items() if "failed" not in result}
    if "chunked" in speeds:
        best = max((name for name in speeds if not name.startswith("distillation")), key=lambda name: speeds[name])
        figure += f"; {best} {speeds[best]:,.0f} tokens/s, chunked {speeds['chunked']:,.0f}"
    ok = len(speeds) == len(PATHS) and agreeing == len(comparisons)
    return Outcome.of(ok, figure, "\n".join(details), comparisons)


def compare_curves(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Relative differences of each path's losses from those of the chunked path with the same objectives."""
    comparisons = {}
    for name, result in results.items():
        rival = results.get("distillation, chunked" if name.startswith("distillation") else "chunked", {})
        if result is rival or "losses" not in result or "losses" not in rival:
            continue
        pairs = list(zip(result["losses"], rival["losses"], strict=False))
        early = max(abs(a - b) / abs(b) for a, b in pairs[:EARLY_STEPS])
        late_a, late_b = (sum(side) for side in zip(*pairs[-LATE_STEPS:], strict=True))
        late = abs(late_a - late_b) / abs(late_b)
        # max() may lose a NaN; a comparison with one is false.
        agree = late <= LATE_TOLERANCE and all(abs(a - b) <= EARLY_TOLERANCE * abs(b) for a, b in pairs[:EARLY_STEPS])
        comparisons[name] = {"early": early, "late": late, "agree": agree}
    return comparisons


def trainer(turn: Turn) -> Outcome:
    """``unibert pretrain`` on the demo's corpus, under DeepSpeed."""
    if missing := _missing_for_training():
        return Outcome("not run", f"{', '.join(missing)} not installed")
    overrides = REHEARSED_RUN if turn.rehearsal else ()
    with tempfile.TemporaryDirectory(prefix="unibert-trainer-") as temporary:
        corpus, run = _demo_corpus(Path(temporary), turn), Path(temporary) / "run"
        ended = turn.python(*_demo_teacher(corpus, run, *overrides), shown=_nothing)
        metrics = run / "metrics.jsonl"
        if not metrics.is_file():
            return Outcome("FAILED", ended.last_line)
        (turn.folder / "trainer-metrics.jsonl").write_bytes(metrics.read_bytes())
        trained = read_metrics(metrics).training
    speed = max((record.get("tokens_per_second") or 0.0 for record in trained), default=0.0)
    losses = f"MLM loss {trained[0]['mlm_loss']:.3f} to {trained[-1]['mlm_loss']:.3f}" if trained else "no step"
    figure = f"{losses}, at most {speed:,.0f} tokens/s"
    return Outcome.of(ended.code == 0, figure if ended.code == 0 else f"{ended.last_line}; {figure}")


def checkpoints(turn: Turn) -> Outcome:
    """What a run waits for its checkpoints, and whether one that is continued is the one that was left alone."""
    if missing := _missing_for_training():
        return Outcome("not run", f"{', '.join(missing)} not installed")
    sizes = (
        ("--hidden_size=64", "--layers=1", "--checkpoints=2", "--checkpoint_every=2")
        if turn.rehearsal
        else ("--hidden_size=768", "--layers=22", "--sequences=64")
    )
    output = turn.folder / "checkpoints.json"
    output.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="unibert-checkpoints-") as temporary:
        corpus = _demo_corpus(Path(temporary), turn)
        same = resumes_exactly(corpus, Path(temporary), turn)
        said = "a continued run " + ("is the one left alone" if same else "DIFFERS from the one left alone")
        ended = turn.python("-m", "unibert", "bench", "checkpoints", corpus, *sizes, f"--output={output}")
    if ended.code != 0:
        return Outcome("FAILED", f"{said}; {ended.last_line}")
    share = 100 * json.loads(output.read_text(encoding="utf-8"))["waited_share_of_writing"]
    return Outcome.of(same, f"{said}; the training waits {share:.1f} % of a checkpoint's writing (goal 5 %)")


def resumes_exactly(corpus: Path, folder: Path, turn: Turn) -> bool:
    """Whether a run of 20 steps that loses its last 10 and is started again writes the same metrics once more.

    Raises:
        UserError: if it fails, with its last line.
    """
    run, interrupted = folder / "left-alone", folder / "interrupted"
    overrides = [
        "--training.tokens=40_960",
        "--training.checkpoint_every=10",
        "--training.keep_checkpoints=9",
        "--training.heldout_sequences=4",
    ]
    for start in (run, interrupted):
        if start == interrupted:
            shutil.copytree(run, interrupted)
            for checkpoint in complete_checkpoints(interrupted / "checkpoints")[1:]:
                shutil.rmtree(checkpoint)
        ended = turn.python(*_demo_teacher(corpus, start, *overrides), shown=_nothing)
        if ended.code != 0:
            raise UserError(f"unibert pretrain ended with status {ended.code}: {ended.last_line}")
    lines = [
        [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in read_metrics(file).records]
        for file in (run / "metrics.jsonl", interrupted / "metrics.jsonl")
    ]
    return lines[0] == lines[1]


def _missing_for_training() -> list[str]:
    has_corpus = (BROUGHT_CORPUS / "manifest.json").is_file()
    wanted = TRAINER_PACKAGES if has_corpus else TRAINER_PACKAGES + CORPUS_PACKAGES
    return [package for package in wanted if find_spec(package) is None]


def _demo_corpus(folder: Path, turn: Turn) -> Path:
    """The one that was brought, or one that is built in ``folder``."""
    if (BROUGHT_CORPUS / "manifest.json").is_file():
        return BROUGHT_CORPUS
    corpus = folder / "corpus"
    ended = turn.python("-m", "unibert", "corpus", "build", WIKI, "--output", corpus, *CORPUS_OPTIONS, shown=_nothing)
    if ended.code != 0:
        raise UserError(f"the demo's corpus could not be built: {ended.last_line}")
    return corpus


def _demo_teacher(corpus: Path, run: Path, *overrides: str) -> list[str]:
    return ["-m", "unibert", "pretrain", "demo-teacher", f"--corpus={corpus}", f"--run_dir={run}", *overrides]


def _nothing(line: str) -> bool:
    return False
