"""Runs that go back to a checkpoint before a loss spike and skip the data in between."""

import json
import shutil
from pathlib import Path

import pytest

from tests.training.compare import lines_without_timing
from unibert.training.config import SpikeConfig
from unibert.training.metrics_file import read_metrics
from unibert.training.rollbacks import Rollback, read_rollbacks, skips_of
from unibert.training.spikes import Spikes

# Two losses in a row above the median of the last four: in so short a run, noise does.
EAGER = {"threshold": 0.0, "window": 4, "steps": 2, "margin": 1, "max_rollbacks": 2}
SPIKES = [f"--training.spikes.{key}={value}" for key, value in EAGER.items()]
SHORT = [f"--training.tokens={20 * 8 * 64}", "--training.checkpoint_every=4", "--training.keep_checkpoints=9"]


def test_a_spike_is_several_high_steps_in_a_row():
    spikes = Spikes(SpikeConfig(threshold=8, window=4, steps=3))
    assert not any(map(spikes.is_spike, [9.0, 5.0, 5.2, 5.1, 4.9]))  # high steps are only known after a full window
    assert spikes.bound == pytest.approx(5.05 + 8 * 1.4826 * 0.1)
    assert not any(map(spikes.is_spike, [7.0, 8.0, 5.0, 7.0, 7.0]))
    saved = json.loads(json.dumps(spikes.state()))
    other = Spikes(SpikeConfig(threshold=8, window=4, steps=3))
    other.restore(saved)
    assert other.bound == spikes.bound
    assert other.is_spike(6.5)
    assert other.high == [7.0, 7.0, 6.5]


def test_what_was_undone_had_skipped_data_of_its_own():
    one, two = Rollback(8, 10, 12, []), Rollback(16, 18, 20, [])
    assert skips_of([one, two]) == {8: [(8, 12)], 16: [(16, 20)]}
    assert skips_of([one, two, Rollback(8, 15, 22, [])]) == {8: [(8, 12), (16, 20), (8, 22)]}


@pytest.fixture
def words(run_file):
    return ["pretrain", str(run_file), *SHORT, *SPIKES]


def test_an_interruption_makes_no_difference(words, tmp_path, unibert):
    run_dir = tmp_path / "run"
    status, output = unibert(*words)
    rollbacks = read_rollbacks(run_dir)
    assert len(rollbacks) == 2, output
    assert output.count(": back to step ") == 2
    if status:
        assert "and the run has gone back 2 times (training.spikes.max_rollbacks)" in output
        assert "Traceback" not in output
    lines = lines_without_timing(run_dir)
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, steps[-1] + 1))
    assert [line["rolled_back"] for line in lines if "rolled_back" in line] == [1, 2]
    assert min(one.to_step for one in rollbacks) >= 4

    # Killed after the first checkpoint, before and after the rollbacks were recorded.
    for is_recorded in (False, True):
        for checkpoint in sorted((run_dir / "checkpoints").glob("step-*"))[1:]:
            shutil.rmtree(checkpoint)
        if not is_recorded:
            (run_dir / "rollbacks.json").unlink()
        assert unibert(*words)[0] == status
        assert read_rollbacks(run_dir) == rollbacks
        assert trained(run_dir) == [line for line in lines if "loss" in line]
        if not is_recorded:
            assert lines_without_timing(run_dir) == lines


def trained(run_dir: Path) -> list[dict]:
    return [line for line in lines_without_timing(run_dir) if "loss" in line]


@pytest.mark.slow
def test_all_ranks_go_back_together(words, tmp_path, unibert):
    assert unibert(*words, ranks=2)[0] == unibert(*words, f"--run_dir={tmp_path / 'alone'}")[0]
    assert [one.to_step for one in read_rollbacks(tmp_path / "run")] == [
        one.to_step for one in read_rollbacks(tmp_path / "alone")
    ]
    checksums = [
        [line["batch_checksum"] for line in read_metrics(tmp_path / name / "metrics.jsonl").training]
        for name in ("run", "alone")
    ]
    assert checksums[0] == checksums[1]
