"""Runs that are continued with other values of the optimizer and the objectives."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.training.checkpoints import damage_later_checkpoints
from tests.training.compare import lines_without_timing
from tests.training.conftest import run_to_end
from unibert.training.metrics_file import read_metrics

LAST = 21
"""Number of steps; there are checkpoints after this one and the one before."""
SHORT = [f"--training.tokens={LAST * 8 * 64}", "--training.checkpoint_every=20"]
RATE = "--optimizer.learning_rate=1e-3"  # half of before


def finish(run_file: Path, folder: Path, *options: str, ranks: int = 1) -> Path:
    """A finished run; beside it, in the folder ``before``, its model one step earlier."""
    status, output = run_to_end("pretrain", str(run_file), f"--run_dir={folder / 'run'}", *SHORT, *options, ranks=ranks)
    assert status == 0, output
    status, output = run_to_end("export", str(folder / "run"), "--step=20", f"--output={folder / 'before'}")
    assert status == 0, output
    return folder / "run"


def interrupt(finished: Path, folder: Path) -> Path:
    """A copy that is to make the last step again."""
    run_dir = Path(shutil.copytree(finished, folder / "interrupted"))
    damage_later_checkpoints(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def finished(module_run_file, tmp_path_factory) -> Path:
    return finish(module_run_file, tmp_path_factory.mktemp("finished"))


@pytest.fixture
def interrupted(finished, tmp_path) -> Path:
    return interrupt(finished, tmp_path)


@pytest.mark.parametrize(
    ("ds_config", "ranks"),
    [("zero0", 1), pytest.param("zero2", 2, marks=pytest.mark.slow), pytest.param("zero3", 2, marks=pytest.mark.slow)],
)
def test_half_the_rate_makes_half_the_step(ds_config, ranks, module_run_file, tmp_path):
    stage = f"--training.ds_config={ds_config}"
    finished = finish(module_run_file, tmp_path, stage, ranks=ranks)
    interrupted = interrupt(finished, tmp_path)
    words = ["pretrain", str(module_run_file), f"--run_dir={interrupted}", *SHORT, stage, RATE]
    words += ["--allow_change=optimizer.learning_rate", "--change_reason=a spike"]
    status, output = run_to_end(*words, ranks=ranks)
    assert status == 0, output
    assert output.count("unibert: from step 21, optimizer.learning_rate is 0.001 instead of 0.002") == 1
    before = load_file(finished.parent / "before" / "model.safetensors")
    whole, half = (load_file(run / "model" / "model.safetensors") for run in (finished, interrupted))
    for name, start in before.items():
        # A weight is rounded to 2^-24 of itself in each of the three files, and so are four operations of AdamW.
        tolerance = 8 * 2.0**-24 * start.abs().max().item()
        assert (half[name] - start - (whole[name] - start) / 2).abs().max() <= tolerance, name
        assert (whole[name] - start).abs().max() > 100 * tolerance, name


def test_a_change_is_recorded_and_kept(interrupted, module_run_file, unibert):
    words = ["pretrain", str(module_run_file), f"--run_dir={interrupted}", *SHORT, RATE, "--mlm.weight=0.5"]
    allowed = ["--allow_change=optimizer.learning_rate,mlm.weight", "--change_reason=the loss had a spike"]
    status, output = unibert(*words, *allowed)
    assert status == 0, output
    records = read_metrics(interrupted / "metrics.jsonl").records
    (change,) = (record for record in records if "changed" in record)
    assert change == {
        "step": 20,
        "changed": {
            "mlm.weight": {"from": 1.0, "to": 0.5},
            "optimizer.learning_rate": {"from": 0.002, "to": 0.001},
        },
        "reason": "the loss had a spike",
    }
    rates = {line["step"]: line["learning_rate"] for line in read_metrics(interrupted / "metrics.jsonl").training}
    assert rates[21] < rates[20] / 1.9
    config = yaml.safe_load((interrupted / "config.yaml").read_text())
    assert (config["optimizer"]["learning_rate"], config["mlm"]["weight"]) == (0.001, 0.5)
    # Slurm starts the same command again; without the values, it is another run.
    lines = lines_without_timing(interrupted)
    status, output = unibert(*words, *allowed)
    assert (status, lines_without_timing(interrupted)) == (0, lines), output
    status, output = unibert("pretrain", str(module_run_file), f"--run_dir={interrupted}", *SHORT)
    assert status == 1
    assert "mlm.weight was 0.5 and is now 1.0" in output


def test_a_run_of_a_version_without_a_key_continues_with_its_default(interrupted, module_run_file, unibert):
    path = interrupted / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["optimizer"]["decay_shape"]
    path.write_text(yaml.safe_dump(config))
    words = ["pretrain", str(module_run_file), f"--run_dir={interrupted}", *SHORT]
    status, output = unibert(*words, "--optimizer.decay_shape=linear")
    assert status == 1
    assert "optimizer.decay_shape was '1-sqrt' and is now 'linear'; give --allow_change optimizer.decay_shape" in output
    status, output = unibert(*words)
    assert status == 0, output


def test_changes_are_refused_unless_they_are_allowed(interrupted, module_run_file, unibert):
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    words = ["pretrain", str(module_run_file), f"--run_dir={interrupted}", *SHORT, RATE]
    status, output = unibert(*words, "--allow_change=mlm.weight")
    assert status == 1
    assert (
        "optimizer.learning_rate was 0.002 and is now 0.001; give --allow_change optimizer.learning_rate to continue "
        f"with the new value, branch off it with --run_dir NEW --resume_from {interrupted}, or" in output
    )
    status, output = unibert(*words, "--allow_change=optimizer.learning_rate", "--seed=3")
    assert status == 1
    assert f"seed was 0 and is now 3; branch off it with --run_dir NEW --resume_from {interrupted}, or" in output
    assert {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()} == before


def test_what_would_change_past_batches_cannot_be_allowed(module_run_file, unibert):
    status, output = unibert("pretrain", str(module_run_file), "--allow_change=stream.masking_rate")
    assert status != 0
    assert "allow_change: stream.masking_rate cannot change during a run; keys that can are optimizer.lea" in output
    assert "Traceback" not in output


def test_scores_of_checkpoints_before_a_change_stay(interrupted, aligned, module_run_file, unibert):
    report = ["report", str(interrupted), "--retrieval", str(aligned)]
    assert unibert(*report)[0] == 0
    words = ["pretrain", str(module_run_file), f"--run_dir={interrupted}", *SHORT, RATE]
    status, output = unibert(*words, "--allow_change=optimizer.learning_rate")
    assert status == 0, output
    shutil.rmtree(interrupted / "checkpoints" / "step-00000020")
    status, output = unibert(*report)
    assert status == 0, output
    points = json.loads((interrupted / "evaluation" / "retrieval_over_run.json").read_text())["points"]
    assert [point["step"] for point in points][-2:] == [20, 21]
