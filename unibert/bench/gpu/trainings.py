"""The parts of ``unibert bench gpu`` that train."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unibert.bench.gpu.part_context import Outcome, PartContext
from unibert.bench.gpu.short_training import PATHS, format_training
from unibert.errors import UserError
from unibert.files import write_json
from unibert.training.checkpoint.folder import complete_checkpoints
from unibert.training.metrics_file import TIMING_KEYS, read_metrics

TRAINER_PACKAGES = ("deepspeed", "webdataset")
CORPUS_PACKAGES = ("mwxml", "sentencepiece", "zstandard")
PREBUILT_CORPUS = Path(".gpu-packages/demo-corpus")
"""Built by ``make gpu-packages``, so that the GPU machine does not need the packages that read dumps."""
WIKI = Path(__file__).parents[2] / "demo" / "wiki"
CORPUS_OPTIONS = ("--vocab_size=6000", "--heldout_share=0.1", "--tokens_per_shard=2500")
"""Options with which the demo builds its corpus."""
EARLY_STEPS, EARLY_TOLERANCE = 10, 5e-3
"""Maximum relative difference of the first losses, before rounding errors grow: bf16's 2^-8 and a margin."""
LATE_STEPS, LATE_TOLERANCE = 20, 2e-2
"""Maximum relative difference of the mean of the last losses."""
SECONDS_TO_START = 12.0
REHEARSAL_OVERRIDES = ("--training.tokens=8192", "--training.heldout_sequences=4")
"""Overrides with which the demo's teacher trains for two steps."""


def training(context: PartContext) -> Outcome:
    """Train briefly with each path; loss curves of the same objectives must agree."""
    results: dict[str, Any] = {}
    output = context.folder / "training.json"
    with tempfile.TemporaryDirectory(prefix="unibert-bench-") as temporary:
        lines = Path(temporary) / "training.jsonl"
        lines.touch()
        while (missing := [name for name in PATHS if name not in results]) and context.seconds > 1:
            # One process for all paths saves starting six; if a path ends it, a new one continues with the others.
            completed = context.python(
                "-m",
                "unibert.bench.gpu.short_training",
                lines,
                "--device",
                context.device,
                "--paths",
                *missing,
                "--seconds",
                max(1.0, context.seconds - SECONDS_TO_START),
            )
            started = missing[0]
            for line in lines.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                started = record.get("started", started)
                if "name" in record:
                    results[record["name"]] = record["result"]
            if started not in results:
                results[started] = {"failed": completed.last_line}
            comparisons = compare_curves(results)
            write_json(output, {"runs": results, "curves": comparisons})
    for name in missing:
        results.setdefault(name, {"failed": "it was not reached in time"})
    details = [f"{name}: {format_training(result)}" for name, result in results.items()]
    details += [
        f"{name} against chunked: first steps differ by {difference['early']:.1e}, last by {difference['late']:.1e}"
        f"{'' if difference['agree'] else ', TOO MUCH'}"
        for name, difference in comparisons.items()
    ]
    num_agreeing = sum(difference["agree"] for difference in comparisons.values())
    figure = f"{num_agreeing} of {len(comparisons)} curves agree with chunked"
    speeds = {name: result["tokens_per_second"] for name, result in results.items() if "failed" not in result}
    if "chunked" in speeds:
        best = max((name for name in speeds if not name.startswith("distillation")), key=lambda name: speeds[name])
        figure += f"; {best} {speeds[best]:,.0f} tokens/s, chunked {speeds['chunked']:,.0f}"
    ok = len(speeds) == len(PATHS) and num_agreeing == len(comparisons)
    return Outcome.of(ok, figure, "\n".join(details), comparisons)


def compare_curves(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Compare each path's losses with those of the chunked path with the same objectives, as relative differences."""
    comparisons = {}
    for name, result in results.items():
        baseline = results.get("distillation, chunked" if name.startswith("distillation") else "chunked", {})
        if result is baseline or "losses" not in result or "losses" not in baseline:
            continue
        pairs = list(zip(result["losses"], baseline["losses"], strict=False))
        early = max(abs(a - b) / abs(b) for a, b in pairs[:EARLY_STEPS])
        late_a, late_b = (sum(losses) for losses in zip(*pairs[-LATE_STEPS:], strict=True))
        late = abs(late_a - late_b) / abs(late_b)
        # max() may drop a NaN, but a comparison with one is false.
        agree = late <= LATE_TOLERANCE and all(abs(a - b) <= EARLY_TOLERANCE * abs(b) for a, b in pairs[:EARLY_STEPS])
        comparisons[name] = {"early": early, "late": late, "agree": agree}
    return comparisons


def trainer(context: PartContext) -> Outcome:
    """Run ``unibert pretrain`` on the demo's corpus under DeepSpeed."""
    if missing := _missing_for_training():
        return Outcome("not run", f"{', '.join(missing)} not installed")
    overrides = REHEARSAL_OVERRIDES if context.rehearsal else ()
    with tempfile.TemporaryDirectory(prefix="unibert-trainer-") as temporary:
        corpus, run = _demo_corpus(Path(temporary), context), Path(temporary) / "run"
        completed = context.python(*_demo_teacher(corpus, run, *overrides), show=_nothing)
        metrics = run / "metrics.jsonl"
        if not metrics.is_file():
            return Outcome("FAILED", completed.last_line)
        (context.folder / "trainer-metrics.jsonl").write_bytes(metrics.read_bytes())
        steps = read_metrics(metrics).training
    speed = max((record.get("tokens_per_second") or 0.0 for record in steps), default=0.0)
    losses = f"MLM loss {steps[0]['mlm_loss']:.3f} to {steps[-1]['mlm_loss']:.3f}" if steps else "no step"
    figure = f"{losses}, at most {speed:,.0f} tokens/s"
    return Outcome.of(
        completed.exit_code == 0, figure if completed.exit_code == 0 else f"{completed.last_line}; {figure}"
    )


def checkpoints(context: PartContext) -> Outcome:
    """Measure how long training waits for checkpoints, and check that a resumed run repeats an uninterrupted one."""
    if missing := _missing_for_training():
        return Outcome("not run", f"{', '.join(missing)} not installed")
    sizes = (
        ("--hidden_size=64", "--layers=1", "--checkpoints=2", "--checkpoint_every=2")
        if context.rehearsal
        else ("--hidden_size=768", "--layers=22", "--sequences=64")
    )
    output = context.folder / "checkpoints.json"
    output.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="unibert-checkpoints-") as temporary:
        corpus = _demo_corpus(Path(temporary), context)
        same = resumes_exactly(corpus, Path(temporary), context)
        resumed = f"a resumed run {'repeats' if same else 'DIFFERS from'} the uninterrupted one"
        completed = context.python("-m", "unibert", "bench", "checkpoints", corpus, *sizes, f"--output={output}")
    if completed.exit_code != 0:
        return Outcome("FAILED", f"{resumed}; {completed.last_line}")
    share = 100 * json.loads(output.read_text(encoding="utf-8"))["waited_share_of_writing"]
    return Outcome.of(same, f"{resumed}; training waits {share:.1f} % of a checkpoint's writing (goal 5 %)")


def resumes_exactly(corpus: Path, folder: Path, context: PartContext) -> bool:
    """Whether a run of 20 steps that is resumed from step 10 writes the same metrics again.

    Raises:
        UserError: if the training fails; the message holds its last line.
    """
    run, interrupted = folder / "uninterrupted", folder / "interrupted"
    overrides = [
        "--training.tokens=40_960",
        "--training.checkpoint_every=10",
        "--training.keep_checkpoints=9",
        "--training.heldout_sequences=4",
    ]
    for run_dir in (run, interrupted):
        if run_dir == interrupted:
            shutil.copytree(run, interrupted)
            for checkpoint in complete_checkpoints(interrupted / "checkpoints")[1:]:
                shutil.rmtree(checkpoint)
        completed = context.python(*_demo_teacher(corpus, run_dir, *overrides), show=_nothing)
        if completed.exit_code != 0:
            raise UserError(f"unibert pretrain ended with status {completed.exit_code}: {completed.last_line}")
    lines = [
        [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in read_metrics(file).records]
        for file in (run / "metrics.jsonl", interrupted / "metrics.jsonl")
    ]
    return lines[0] == lines[1]


def _missing_for_training() -> list[str]:
    has_corpus = (PREBUILT_CORPUS / "manifest.json").is_file()
    required = TRAINER_PACKAGES if has_corpus else TRAINER_PACKAGES + CORPUS_PACKAGES
    return [package for package in required if find_spec(package) is None]


def _demo_corpus(folder: Path, context: PartContext) -> Path:
    """The prebuilt corpus, or one that is built in ``folder``."""
    if (PREBUILT_CORPUS / "manifest.json").is_file():
        return PREBUILT_CORPUS
    corpus = folder / "corpus"
    completed = context.python(
        "-m", "unibert", "corpus", "build", WIKI, "--output", corpus, *CORPUS_OPTIONS, show=_nothing
    )
    if completed.exit_code != 0:
        raise UserError(f"the demo's corpus could not be built: {completed.last_line}")
    return corpus


def _demo_teacher(corpus: Path, run: Path, *overrides: str) -> list[str]:
    return ["-m", "unibert", "pretrain", "demo-teacher", f"--corpus={corpus}", f"--run_dir={run}", *overrides]


def _nothing(line: str) -> bool:
    return False
