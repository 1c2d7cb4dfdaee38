"""``unibert bench gpu``, as far as it can be tested without a GPU."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from tests.bench.losses.test_goals import good, row
from tests.training.conftest import corpus  # noqa: F401 - a fixture
from unibert.bench.gpu import checks, trainings
from unibert.bench.gpu.attention import AttentionCase, packed_sequences, time_paths
from unibert.bench.gpu.checks import find_sanitizer, judge_sanitizer
from unibert.bench.gpu.part_context import Outcome, PartContext
from unibert.bench.gpu.run import OVERHEAD_SECONDS, STAGES, GpuBenchConfig, Part, Stage, bench_gpu
from unibert.bench.gpu.short_training import TrainingSize, train
from unibert.bench.gpu.timed_command import CompletedCommand, run_command
from unibert.bench.gpu.times import attention_times, judge_rows, tuning_figure
from unibert.bench.gpu.trainings import compare_curves
from unibert.cli import main
from unibert.model.config import ModelConfig
from unibert.training.metrics_file import LoggedMetrics, read_metrics


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "gpu"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("unibert: error: bench gpu needs a CUDA GPU")


@pytest.mark.parametrize("name", ["chunked", "distillation, chunked"])
def test_the_short_training_is_repeatable(name):
    size = TrainingSize(vocab=200, hidden=32, layers=1, batch=2, sequence=64, steps=3)
    first, again = (train(name, size, "cpu") for _ in range(2))
    assert len(first["losses"]) == 3
    assert first["losses"] == again["losses"]
    assert first["tokens_per_second"] > 0


def test_attention_paths_that_can_run_are_timed():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    case = AttentionCase(model=ModelConfig(config=sizes), sequences=2, sequence_length=512)
    result = time_paths(case, "cpu")
    for path in ("sdpa", "varlen"):
        assert result["paths"][path].keys() == {"forward_ms", "both_ms", "tokens_per_second"}
    line = attention_times(result)
    assert line.startswith(
        f"sdpa {result['paths']['sdpa']['both_ms']:.1f} ms, flex failed: ValueError: attention: flex"
    )
    assert line.endswith(f"varlen {result['paths']['varlen']['both_ms']:.1f} ms")


def test_attention_paths_get_well_packed_sequences_of_documents_of_many_lengths():
    document_ids, position_ids = packed_sequences(64, 2048)
    assert float((document_ids < 0).float().mean()) < 0.05
    lengths = document_ids[document_ids >= 0].bincount().float()
    # A quarter of a log-normal's values is below its median times exp(-0.67 sigma), here 204, and a quarter above 785;
    # cutting at 2048 hardly changes this.
    assert 150 < float(lengths.quantile(0.25)) < 270
    assert 600 < float(lengths.quantile(0.75)) < 1000
    assert lengths.max() == 2048
    assert position_ids.max() == 2047


def test_curves_are_compared_with_the_chunked_path():
    falling = [9 - step / 40 for step in range(120)]
    results = {
        "chunked": {"losses": falling},
        "recompute": {"losses": [loss * 1.001 for loss in falling]},
        "exp-store": {"losses": [*falling[:60], *(loss * 1.05 for loss in falling[60:])]},
        "distillation, chunked": {"failed": "out of memory"},
        "distillation, recompute": {"losses": falling},
    }
    comparisons = compare_curves(results)
    assert {name: entry["agree"] for name, entry in comparisons.items()} == {"recompute": True, "exp-store": False}
    results["recompute"]["losses"] = [math.nan] * 120
    assert not compare_curves(results)["recompute"]["agree"]


def make_context(folder, seconds, **more):
    return PartContext(folder=folder, end=time.monotonic() + seconds, log=(folder / "log.txt").open("w"), **more)


@pytest.mark.slow
def test_an_exact_resume_is_distinguished_from_an_inexact_one(corpus, tmp_path, monkeypatch):  # noqa: F811
    context = make_context(tmp_path, 400, rehearsal=True)
    assert trainings.resumes_exactly(corpus, tmp_path, context)
    assert len(list((tmp_path / "interrupted" / "checkpoints").glob("step-*"))) == 2
    first, *others = read_metrics(tmp_path / "interrupted" / "metrics.jsonl").records
    assert others
    altered = [first, *others[:-1], others[-1] | {"heldout_mlm_loss": 0.0}]
    monkeypatch.setattr(
        trainings,
        "read_metrics",
        lambda file: LoggedMetrics(altered if file.parent.name == "interrupted" else [first, *others], damaged_lines=0),
    )
    shutil.rmtree(tmp_path / "interrupted")
    # Both runs have been trained.
    monkeypatch.setattr(PartContext, "python", lambda self, *arguments, **options: CompletedCommand(0, ""))
    assert not trainings.resumes_exactly(corpus, tmp_path, context)


@pytest.mark.parametrize("number", STAGES)
def test_budgets_fit_the_stage(number):
    stage = STAGES[number]
    assert stage.seconds == {1: 360, 2: 420}[number]
    budgets = [part.budget for part in stage.parts if not part.optional]
    assert sum(budgets) + OVERHEAD_SECONDS <= stage.seconds
    # Optional parts come last, after all parts with reserved time.
    assert not any(part.optional for part in stage.parts[: len(budgets)])


@pytest.fixture
def stage(tmp_path, monkeypatch, capsys):
    """Function that runs a stage of made-up parts and returns success, the parts in summary.json and the output."""

    def run(*parts, seconds=60.0):
        monkeypatch.setattr("unibert.bench.gpu.run.STAGES", {1: Stage(seconds, parts)})
        monkeypatch.setattr("unibert.bench.gpu.run.PARTS", {part.name: part for part in parts})
        ok = bench_gpu(GpuBenchConfig(stage=1, rehearse=True, output=tmp_path))
        return ok, json.loads((tmp_path / "summary.json").read_text())["parts"], capsys.readouterr().out

    return run


def python(text):
    """A part that runs a line of Python."""

    def run(context):
        completed = context.python("-c", text)
        return Outcome.of(completed.exit_code == 0, completed.last_line)

    return run


def test_a_failed_part_stops_no_other_part_and_earlier_results_stay(tmp_path, stage):
    def broken(context):
        raise RuntimeError("the kernels are on fire")

    earlier = {"verdict": "ok", "seconds": 1, "figure": "x | y", "details": "", "data": None}
    (tmp_path / "summary.json").write_text(json.dumps({"format": 2, "parts": {"earlier": earlier}}))
    ok, parts, text = stage(Part("broken", broken, 10), Part("whole", python("print('4 of 4')"), 10))
    assert not ok
    assert {name: record["verdict"] for name, record in parts.items()} == {
        "earlier": "ok",
        "broken": "FAILED",
        "whole": "ok",
    }
    assert text.splitlines()[-5:-2] == [
        "| part | verdict | seconds | figure against goal |",
        "| --- | --- | ---: | --- |",
        "| earlier | ok | 1 | x \\| y |",
    ]
    assert text.splitlines()[-2].startswith("| broken | FAILED | 0 | RuntimeError: the kernels are on fire |")
    assert text.splitlines()[-1].startswith("| whole | ok | ")
    assert text.splitlines()[-1].endswith(" | 4 of 4 |")
    assert "4 of 4" in (tmp_path / "stage-1.txt").read_text()


def test_a_part_that_exceeds_its_time_is_killed_with_its_children_and_its_output_stays(tmp_path, stage):
    pid = tmp_path / "pid"
    sleeper = (
        "import subprocess, sys, time; from pathlib import Path; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']); "
        f"Path({str(pid)!r}).write_text(str(child.pid)); print('halfway', flush=True); time.sleep(300)"
    )
    begun = time.monotonic()
    # The stage has 3 s for the first part and 5 s for the second.
    ok, parts, text = stage(
        Part("endless", python(sleeper), 3), Part("next", python("print('done')"), 5), seconds=8 + OVERHEAD_SECONDS
    )
    assert time.monotonic() - begun < 200
    assert not ok
    assert parts["endless"]["verdict"] == "FAILED"
    assert "it ran out of time after" in parts["endless"]["figure"]
    assert "halfway" in text
    assert parts["next"] | {"seconds": 0} == {
        "verdict": "ok",
        "seconds": 0,
        "figure": "done",
        "details": "",
        "data": None,
    }
    # Its child was killed too; at most a zombie is left until init reaps it.
    status = Path(f"/proc/{pid.read_text()}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_unused_time_goes_to_later_and_optional_parts(stage):
    given = {}

    def note(name, seconds=0.0):
        def run(context):
            given[name] = context.seconds
            time.sleep(seconds)
            return Outcome.of(True, "")

        return run

    ok, parts, _ = stage(
        Part("quick", note("quick"), 20),
        Part("slow", note("slow", 1.5), 20),
        Part("extra", note("extra"), 15, optional=True, min_seconds=10),
        Part("more", note("more"), 90, optional=True, min_seconds=50),
        seconds=40 + OVERHEAD_SECONDS,
    )
    assert ok
    assert given["quick"] == pytest.approx(20, abs=1)
    assert given["slow"] == pytest.approx(40, abs=1)
    assert given["extra"] == pytest.approx(15, abs=0.5)
    assert parts["more"]["verdict"] == "not run"
    assert "at least 50 are needed" in parts["more"]["figure"]


def test_a_process_outside_the_group_does_not_delay_the_command():
    daemon = "import subprocess; subprocess.Popen(['sleep', '300'], start_new_session=True); print('left')"
    assert run_command([sys.executable, "-c", daemon], 200) == CompletedCommand(0, "left\n")


def test_failed_tests_are_reported_at_once_and_at_most_five(tmp_path, monkeypatch, capsys):
    (tmp_path / "test_some.py").write_text(
        "import pytest, time\n"
        "@pytest.mark.parametrize('number', range(40))\n"
        "def test_all(number):\n    time.sleep(0.1)\n    assert number % 2, 'even'\n"
    )
    monkeypatch.setattr(checks, "KERNEL_TESTS", tmp_path)
    monkeypatch.setattr(checks, "WORKERS", 2)
    monkeypatch.setattr(PartContext, "compiling_in_background", lambda self, preset: nullcontext())
    outcome = checks.numerics(make_context(tmp_path, 200))
    shown = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert outcome.verdict == "FAILED"
    assert "failed" in outcome.figure
    assert len(shown) == 5
    assert "::test_all[" in shown[0]
    assert "AssertionError: even" in shown[0]


@pytest.mark.slow
def test_after_the_time_limit_the_counts_of_tests_are_reported(tmp_path, monkeypatch):
    (tmp_path / "test_some.py").write_text(
        "import pytest, time\n@pytest.mark.parametrize('number', range(99))\ndef test_all(number):\n    time.sleep(1)\n"
    )
    monkeypatch.setattr(checks, "KERNEL_TESTS", tmp_path)
    monkeypatch.setattr(checks, "WORKERS", 2)
    monkeypatch.setattr(PartContext, "compiling_in_background", lambda self, preset: nullcontext())
    outcome = checks.numerics(make_context(tmp_path, 40))
    assert outcome.verdict == "FAILED"
    assert "it ran out of time after 40 s; so far: " in outcome.figure
    assert " passed" in outcome.figure


def test_the_outcome_follows_from_the_rows():
    rows = [
        *good(),
        row("UniBERT fused", 0.1, "ours", loss="adversary"),
        row("eager", 0.25, loss="adversary"),
        {**row("UniBERT chunked", 1.0, "ours"), "status": "not run", "why": "the time given was used up"},
    ]
    outcome = judge_rows({"rows": rows}, [])
    assert outcome.verdict == "ok"
    assert outcome.figure.startswith("7 of 7 goals met; ≥ 1.5 times the best peer: 1.57 (UniBERT exp-store 10.20 ms")
    assert "1 rows not reached in time" in outcome.figure
    assert "adversary: 2.50 times the best peer (UniBERT fused 0.100 ms, eager 0.250 ms)" in outcome.details
    wrong = judge_rows({"rows": [*rows, row("UniBERT chunked", 9.0, "ours", accurate=False)]}, [])
    assert wrong.verdict == "FAILED"
    assert "UniBERT chunked (mlm, H=384): inaccurate" in wrong.details
    unreached = judge_rows({"rows": [*good()[2:5], *rows[-3:]]}, [])
    assert unreached.verdict == "FAILED"
    assert "mlm: no UniBERT path was measured" in unreached.details


@pytest.mark.parametrize(
    ("code", "lines", "verdict", "figure"),
    [
        (
            0,
            ["done: mlm", "done: adversary", "========= ERROR SUMMARY: 0 errors"],
            "ok",
            "0 errors in 2 paths (goal 0)",
        ),
        (0, ["done: mlm", "========= ERROR SUMMARY: 3 errors"], "FAILED", "3 errors in 1 paths (goal 0); done: mlm"),
        (1, ["ImportError: no x", "========= ERROR SUMMARY: 0 errors"], "FAILED", "0 errors in 0 paths (goal 0); Imp"),
        (None, ["done: mlm", "it ran out of time after 9 s"], "FAILED", "no summary after 1 paths: it ran out of time"),
    ],
)
def test_the_outcome_follows_from_the_sanitizers_output(code, lines, verdict, figure):
    outcome = judge_sanitizer(CompletedCommand(code, "\n".join(lines)))
    assert outcome.verdict == verdict
    assert outcome.figure.startswith(figure)


def test_the_sanitizer_is_found_in_the_folder_of_cuda(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "CUDA", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_sanitizer() is None
    tool = tmp_path / "cuda-13.0" / "bin" / "compute-sanitizer"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert find_sanitizer() == str(tool)


def test_the_figure_of_tuning_comes_from_its_lines():
    text = (
        "rows 128 x 256 x 64, 8 warps, 3 stages, pointers: 12.500 ms\n"
        "rows 128 x 128 x 64, 4 warps, 3 stages, descriptors: 11.000 ms\n"
        "rows: 128 x 128 x 64, 4 warps, 3 stages, descriptors, 11.000 ms, the best of 2 on X, V = 9, H = 8, N = 7\n"
        "gradient 128 x 256 x 64, 8 warps, 3 stages, pointers: 9.000 ms\n"
    )
    assert tuning_figure(text) == "rows 12.50 to 11.00 ms of 2; gradient 9.00 to 9.00 ms of 1"
    assert tuning_figure("") == "no tile was timed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--stage", "3"], "stage"), (["numericks"], "there is no 'numericks'"), (["--minutes", "0"], "minutes: must")],
)
def test_mistakes_end_with_an_error(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "gpu", *arguments])
    assert stopped.value.code == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_rehearsal_runs_both_stages(tmp_path):
    # The budgets of the parts are a GPU machine's.
    command = [sys.executable, "-m", "unibert", "bench", "gpu", "--rehearse", "--minutes=5", f"--output={tmp_path}"]
    completed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert completed.returncode == 0, completed.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rehearsal"]
    names = [part.name for stage in STAGES.values() for part in stage.parts]
    assert list(summary["parts"]) == names
    assert {record["verdict"] for record in summary["parts"].values()} == {"ok"}
    table = completed.stdout.splitlines()[-len(names) :]
    assert [line.split(" | ")[:2] for line in table] == [[f"| {name}", "ok"] for name in names]
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    first = ["headline/results.json", "profile.json", "stage-1.txt"]
    second = [
        "attention.json",
        "checkpoints.json",
        "configs.toml",
        "stage-2.txt",
        "trainer-metrics.jsonl",
        "training.json",
        "widths/results.json",
    ]
    assert files == sorted([*first, *second, "summary.json"])
