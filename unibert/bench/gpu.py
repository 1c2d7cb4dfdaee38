"""``unibert bench gpu``: everything that wants a CUDA GPU, in one go, each part within ten minutes.

1. correctness: the tests of kernels and attention on the GPU;
2. kernels: ``unibert bench kernels`` with the preset ``goals``;
3. attention: times of the attention paths on packed rows;
4. training: short trainings with each kernel path, whose loss curves must agree;
5. trainer: ``unibert pretrain`` on the demo's corpus, with DeepSpeed, where its packages are installed;
6. checkpoints: what a run waits for them, and whether one that is continued is the one that was left alone.

A part that fails is recorded and does not stop the next; a part that is run again replaces what it left.
``summary.json`` in the output folder holds, for each part, ``ok``, ``seconds``, ``summary`` (a line or several) and,
where there is one, ``detail``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from unibert.bench.attention import PRESETS, SEQUENCE_LENGTHS
from unibert.bench.checkpoints import CheckpointBenchConfig, bench_checkpoints
from unibert.bench.config import KernelBenchConfig
from unibert.bench.goals import format_verdict, verdict
from unibert.bench.gpu_machine import check_gpu_machine
from unibert.bench.kernels import bench_kernels
from unibert.bench.short_training import PATHS
from unibert.environment import describe_environment
from unibert.errors import UserError
from unibert.training.checkpoints import complete_checkpoints
from unibert.training.metrics import TIMING_KEYS, read_metrics

Part = Literal["correctness", "kernels", "attention", "training", "trainer", "checkpoints"]
TESTS = (Path("tests/kernels"), Path("tests/model/test_attention.py"))
TRAINER_PACKAGES = ("deepspeed", "webdataset")
CORPUS_PACKAGES = ("mwxml", "mwparserfromhell", "sentencepiece", "zstandard")
BROUGHT_CORPUS = Path(".gpu-packages/demo-corpus")
"""Built by ``make gpu-packages``, so that a GPU machine need not have the packages that read dumps."""
WIKI = Path(__file__).parents[1] / "demo" / "wiki"
CORPUS_OPTIONS = ("--vocab_size=6000", "--heldout_share=0.1", "--tokens_per_shard=2500")
"""As the demo builds it."""
EARLY_STEPS, EARLY_TOLERANCE = 10, 5e-3
"""Largest relative difference of the first losses, before rounding has had time to grow: bf16's 2^-8 and a margin."""
LATE_STEPS, LATE_TOLERANCE = 20, 2e-2
"""Of the mean of the last losses."""


@dataclass(kw_only=True)
class GpuBenchConfig:
    """Which parts, and for how long."""

    parts: list[Part] = field(default_factory=lambda: list(get_args(Part)))
    """In this order."""

    minutes: float = 9.0
    """Time for each part."""

    output: Path | None = None
    """Folder; docs/benchmarks/gpu-<name> if not given."""

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ValueError(f"minutes: must be positive, got {self.minutes}")


@dataclass
class Outcome:
    """What a part has to say."""

    ok: bool
    summary: str
    detail: Any = None


def bench_gpu(config: GpuBenchConfig) -> dict[str, Any]:
    """Run the parts, print a short summary last, and write summary.json after each part.

    Raises:
        UserError: if torch finds no CUDA GPU, or the folder cannot be made.
    """
    check_gpu_machine()
    environment = describe_environment()
    name = re.sub(r"[^a-z0-9]+", "-", str(environment["device"]).lower()).strip("-")
    folder = config.output or Path("docs/benchmarks") / f"gpu-{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error
    parts: dict[Part, Callable[[Path, float], Outcome]] = {
        "correctness": _correctness, "kernels": _kernels, "attention": _attention, "training": _training,
        "trainer": _trainer, "checkpoints": _checkpoints,
    }  # fmt: skip
    summary: dict[str, Any] = {"format": 1, "environment": environment, "parts": _earlier_parts(folder)}
    for part in config.parts:
        print(f"== {part}", flush=True)
        start = time.monotonic()
        try:
            outcome = parts[part](folder, 60 * config.minutes)
        except Exception as error:  # whatever goes wrong is this part's result
            outcome = Outcome(False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        seconds = round(time.monotonic() - start, 1)
        record = {"ok": outcome.ok, "seconds": seconds, "summary": outcome.summary, "detail": outcome.detail}
        summary["parts"][part] = record
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"\n{environment['device']}")
    for part, record in summary["parts"].items():
        print(f"{'ok    ' if record['ok'] else 'FAILED'} {part} ({record['seconds']:.0f} s)")
        print("".join(f"    {line}\n" for line in record["summary"].splitlines()), end="")
    print(f"results  {folder}")
    return summary


def _earlier_parts(folder: Path) -> dict[str, Any]:
    """What a run of other parts left in ``folder``; an unreadable file is as good as none, it is written anew."""
    try:
        parts = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["parts"]
    except (OSError, ValueError, KeyError):
        return {}
    return dict(parts)


def _correctness(folder: Path, seconds: float) -> Outcome:
    if find_spec("pytest") is None or not all(tests.exists() for tests in TESTS):
        return Outcome(False, "not run: pytest or the tests are missing; run from the repository's root")
    code, text = _run(
        [sys.executable, "-m", "pytest", *map(str, TESTS), "-q", "-m", "not slow", "-p", "no:cacheprovider"],
        seconds, TRITON_INTERPRET="0",
    )  # fmt: skip
    (folder / "correctness.txt").write_text(text, encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip()]
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))][:5]
    return Outcome(code == 0, "\n".join([*failures, _last_line(text)]))


def _kernels(folder: Path, seconds: float) -> Outcome:
    # The last case may take its worker's grace beyond the time given.
    results = bench_kernels(KernelBenchConfig(preset="goals", minutes=seconds / 60, output=folder / "kernels"))
    ours = [row for row in results["rows"] if row["side"] == "ours"]
    ran = [row for row in results["rows"] if row["status"] == "ran"]
    goals = verdict(results)
    broken = [f"{row['contestant']}: {row['why']}" for row in ours if row["status"] == "failed"]
    wrong = [f"{row['contestant']}: inaccurate" for row in ran if row["side"] == "ours" and not row["accurate"]]
    counted = f"{sum(goal.met for goal in goals)} of {len(goals)} goals met, {len(ran)} rows measured"
    summary = "\n".join([counted, format_verdict(goals), *broken, *wrong])
    return Outcome(bool(ran) and not broken and not wrong, summary)


def _attention(folder: Path, seconds: float) -> Outcome:
    results: dict[str, Any] = {}
    end = time.monotonic() + seconds
    cases = [(preset, length) for preset in PRESETS for length in SEQUENCE_LENGTHS]
    for number, (preset, length) in enumerate(cases):
        share = max(20.0, (end - time.monotonic()) / (len(cases) - number))
        with tempfile.TemporaryDirectory(prefix="unibert-bench-") as temporary:
            output = Path(temporary) / "attention.json"
            code, text = _run(
                [sys.executable, "-m", "unibert.bench.attention", preset, str(length), str(output)], share
            )
            result = json.loads(output.read_text()) if code == 0 else {"failed": _last_line(text)}
        results[f"{preset}, {length} tokens"] = result
        print(f"  {preset}, {length} tokens: {attention_times(result)}", flush=True)
    (folder / "attention.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    ok = all("failed" not in result for result in results.values())
    ok = ok and all("failed" not in timed for result in results.values() for timed in result["paths"].values())
    return Outcome(ok, "\n".join(f"{name}: {attention_times(result)}" for name, result in results.items()))


def attention_times(result: dict[str, Any]) -> str:
    """A line on one case of the attention part, e.g. "sdpa 61.0 ms, flex 40.2 ms, varlen 35.7 ms"."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    return ", ".join(
        f"{path} failed: {timed['failed']}" if "failed" in timed else f"{path} {timed['both_ms']:.1f} ms"
        for path, timed in result["paths"].items()
    )


def _training(folder: Path, seconds: float) -> Outcome:
    results: dict[str, Any] = {}
    end = time.monotonic() + seconds
    for number, name in enumerate(PATHS):
        share = max(20.0, (end - time.monotonic()) / (len(PATHS) - number))
        with tempfile.TemporaryDirectory(prefix="unibert-bench-") as temporary:
            output = Path(temporary) / "training.json"
            command = [sys.executable, "-m", "unibert.bench.short_training", name, str(output)]
            # Half of its share may go into start and compilation.
            code, text = _run([*command, "--seconds", str(share / 2)], share)
            finished = code == 0
            results[name] = json.loads(output.read_text()) if finished else {"failed": _last_line(text)}
        print(f"  {name}: {_speed(results[name])}", flush=True)
    comparisons = compare_curves(results)
    (folder / "training.json").write_text(json.dumps({"runs": results, "curves": comparisons}), encoding="utf-8")
    lines = [f"{name}: {_speed(result)}" for name, result in results.items()]
    lines += [
        f"{name} against chunked: first steps differ by {found['early']:.1e}, last by {found['late']:.1e}"
        f"{'' if found['agree'] else ', TOO MUCH'}"
        for name, found in comparisons.items()
    ]
    ok = all("failed" not in result for result in results.values())
    return Outcome(ok and all(found["agree"] for found in comparisons.values()), "\n".join(lines), comparisons)


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


def _trainer(folder: Path, seconds: float) -> Outcome:
    if missing := _missing_for_training():
        return Outcome(True, f"not run: {', '.join(missing)} not installed")
    with tempfile.TemporaryDirectory(prefix="unibert-trainer-") as temporary:
        corpus, run = _demo_corpus(Path(temporary), seconds), Path(temporary) / "run"
        code, output = _run(_demo_teacher(corpus, run), seconds)
        (folder / "trainer.txt").write_text(output, encoding="utf-8")
        metrics = run / "metrics.jsonl"
        if not metrics.is_file():
            return Outcome(False, _last_line(output))
        (folder / "trainer-metrics.jsonl").write_bytes(metrics.read_bytes())
        records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    trained = [record for record in records if "mlm_loss" in record]
    speed = max((record.get("tokens_per_second") or 0.0 for record in trained), default=0.0)
    losses = f"MLM loss {trained[0]['mlm_loss']:.3f} to {trained[-1]['mlm_loss']:.3f}" if trained else "no step"
    return Outcome(code == 0, f"{losses}, at most {speed:,.0f} tokens/s" if code == 0 else _last_line(output))


def _missing_for_training() -> list[str]:
    has_corpus = (BROUGHT_CORPUS / "manifest.json").is_file()
    wanted = TRAINER_PACKAGES if has_corpus else TRAINER_PACKAGES + CORPUS_PACKAGES
    return [package for package in wanted if find_spec(package) is None]


def _demo_corpus(folder: Path, seconds: float) -> Path:
    """The one that was brought, or one that is built in ``folder``."""
    if (BROUGHT_CORPUS / "manifest.json").is_file():
        return BROUGHT_CORPUS
    corpus = folder / "corpus"
    command = [sys.executable, "-m", "unibert", "corpus", "build", str(WIKI), "--output", str(corpus), *CORPUS_OPTIONS]
    code, output = _run(command, seconds)
    if code != 0:
        raise UserError(f"the demo's corpus could not be built: {_last_line(output)}")
    return corpus


def _demo_teacher(corpus: Path, run: Path, *overrides: str) -> list[str]:
    words = ["pretrain", "demo-teacher", f"--corpus={corpus}", f"--run_dir={run}", *overrides]
    return [sys.executable, "-m", "unibert", *words]


def _checkpoints(folder: Path, seconds: float) -> Outcome:
    if missing := _missing_for_training():
        return Outcome(True, f"not run: {', '.join(missing)} not installed")
    with tempfile.TemporaryDirectory(prefix="unibert-checkpoints-") as temporary:
        corpus = _demo_corpus(Path(temporary), seconds)
        same = resumes_exactly(corpus, Path(temporary), seconds)
        output = folder / "checkpoints.json"
        results = bench_checkpoints(
            CheckpointBenchConfig(corpus=str(corpus), hidden_size=768, layers=22, sequences=64, output=output)
        )
    share = 100 * results["waited_share_of_writing"]
    said = "is the one left alone, to the digit" if same else "DIFFERS from the one left alone"
    return Outcome(same, f"a continued run {said}; the training waits {share:.1f} % of a checkpoint's writing")


def resumes_exactly(corpus: Path, folder: Path, seconds: float) -> bool:
    """Whether a run of 20 steps that loses its last 10 and is started again writes the same metrics once more.

    Raises:
        UserError: if it fails, with its last line.
    """
    run, interrupted = folder / "left-alone", folder / "interrupted"
    overrides = ["--training.tokens=40_960", "--training.checkpoint_every=10", "--training.keep_checkpoints=9",
                 "--training.heldout_sequences=4"]  # fmt: skip
    for start in (run, interrupted):
        if start == interrupted:
            shutil.copytree(run, interrupted)
            for checkpoint in complete_checkpoints(interrupted / "checkpoints")[1:]:
                shutil.rmtree(checkpoint)
        code, output = _run(_demo_teacher(corpus, start, *overrides), seconds)
        if code != 0:
            raise UserError(f"unibert pretrain ended with status {code}: {_last_line(output)}")
    lines = [
        [{key: value for key, value in line.items() if key not in TIMING_KEYS} for line in read_metrics(file)]
        for file in (run / "metrics.jsonl", interrupted / "metrics.jsonl")
    ]
    return lines[0] == lines[1]


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")[:300]


def _speed(result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"failed: {result['failed']}"
    first, last = result["losses"][0], result["losses"][-1]
    return (
        f"{result['tokens_per_second']:,.0f} tokens/s, loss {first:.3f} to {last:.3f} in {len(result['losses'])} steps"
    )


def _run(command: list[str], seconds: float, **variables: str) -> tuple[int | None, str]:
    """Exit status (None: it ran out of time) and output of ``command``."""
    # A session of its own, so that a launcher's ranks end with it.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        errors="replace", env=os.environ | variables, start_new_session=True,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=seconds)
        return process.returncode, text
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        text, _ = process.communicate()
        return None, f"{text}\nit ran out of time after {seconds:.0f} s"
