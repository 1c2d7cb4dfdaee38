"""Monitors show a run as one curve, however often it was interrupted."""

import csv
import json
import shutil
from importlib.util import find_spec

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.checkpoints import damage_later_checkpoints
from unibert.configuration import parse
from unibert.training.checkpoint.claim import Claim
from unibert.training.config import RunConfig
from unibert.training.metrics_file import read_metrics
from unibert.training.metrics_log import MetricsLog

WANDB = find_spec("wandb") is not None


def test_a_run_that_repeats_steps_has_each_point_once(module_run_file, tmp_path, unibert):
    run_dir = tmp_path / "run"
    words = [
        "pretrain",
        str(module_run_file),
        f"--run_dir={run_dir}",
        "--training.tokens=2048",
        "--training.checkpoint_every=2",
        f"--training.monitors=tensorboard,csv{',wandb' if WANDB else ''}",
        "--wandb.mode=offline",
        "--wandb.project=languages",
        "--wandb.tags=de,en",
    ]
    status, output = unibert(*words)
    assert status == 0, output
    damage_later_checkpoints(run_dir)
    status, output = unibert(*words, "--wandb.group=late")
    assert status == 0, output
    logged = read_metrics(run_dir / "metrics.jsonl")
    losses = [line["loss"] for line in logged.training]
    assert len(losses) == 4
    for axis, places in (("steps", [1, 2, 3, 4]), ("tokens", [512, 1024, 1536, 2048])):
        events = EventAccumulator(str(run_dir / "monitor" / "tensorboard" / axis)).Reload()
        assert [event.step for event in events.Scalars("unibert/loss")] == places
        # TensorBoard keeps float32.
        assert [event.value for event in events.Scalars("unibert/loss")] == pytest.approx(losses, rel=1e-6)
        heldout = [event.step for event in events.Scalars("unibert/heldout_mlm_loss")]
        assert heldout == [record["step" if axis == "steps" else "tokens"] for record in logged.heldout]
    with (run_dir / "monitor" / "csv" / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = [(str(step), str(512 * step), loss) for step, loss in enumerate(losses, 1)]
    assert [(row["step"], row["tokens"], float(row["value"])) for row in rows] == expected
    if WANDB:
        state = json.loads((run_dir / "monitor" / "wandb.json").read_text())
        first, second = sorted((run_dir / "monitor" / "wandb").glob("offline-run-*"))
        assert first.name.endswith(state["id"])
        assert second.name.endswith(state["id"])
        assert state["step"] == 4
        # Texts stand in these files as they are.
        early, late = (next(folder.glob("run-*.wandb")).read_bytes() for folder in (first, second))
        assert all(text in early for text in (b"languages", b"masking_rate", b"heldout_mlm_accuracy"))
        assert b"late" in late
        assert b"heldout_mlm_accuracy" not in late


def test_a_monitor_that_fails_does_not_end_the_run(tmp_path, capsys):
    words = [f"--run_dir={tmp_path}", "--corpus=c", "--training.tokens=2048", "--training.monitors=csv"]
    log = MetricsLog(tmp_path, Claim(tmp_path), 4)
    log.start_after(0, 0, parse(RunConfig, words))
    log.write({"step": 1, "tokens": 512, "loss": 3.0})
    shutil.rmtree(tmp_path / "monitor")
    for step in (2, 3):
        log.write({"step": step, "tokens": 512 * step, "loss": 2.0})
    log.close()
    [sentence] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unibert: ")]
    assert sentence.startswith("unibert: training.monitors: csv fails ([Errno 2] No such file")
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl").training] == [1, 2, 3]
