"""A run that was killed gives the losses of one that was not."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.training.compare import lines_without_timing
from tests.training.conftest import start
from tests.training.processes import fork_ranks, rank_process, statuses, wait_for_line
from unibert.reports.run_status import RunWatch


def measuring(aligned: Path) -> list[str]:
    """Options that measure retrieval after 10 and 20 steps, and so on, with a best checkpoint by it."""
    return [
        f"--training.retrieval={aligned}",
        f"--training.retrieval_every_tokens={10 * 8 * 64}",
        "--training.keep_best=true",
        "--training.best_by=retrieval_raw",
    ]


@pytest.mark.slow
def test_a_killed_rank_loses_nothing(run_file, aligned, tmp_path, unibert):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    words = ["pretrain", str(run_file), "--training.ds_config=zero2", *measuring(aligned)]
    assert unibert(*words, f"--run_dir={undisturbed}", ranks=2)[0] == 0

    # By the launcher, as users do.
    process = start([*words, f"--run_dir={killed}"], ranks=2, start_new_session=True)
    wait_for_line(killed / "metrics.jsonl", step=27)
    os.kill(rank_process(process.pid, rank=1), signal.SIGKILL)
    process.communicate(timeout=200)
    assert process.returncode != 0
    seen = lines_without_timing(killed)
    assert 27 <= seen[-1]["step"] < 50

    assert unibert(*words, f"--run_dir={killed}", ranks=2)[0] == 0
    assert lines_without_timing(killed) == lines_without_timing(undisturbed)


def test_a_signal_saves_a_checkpoint_and_the_same_command_continues(run_file, aligned, tmp_path, unibert):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    words = ["pretrain", str(run_file), "--training.checkpoint_every=1000", *measuring(aligned)]
    assert unibert(*words, f"--run_dir={undisturbed}")[0] == 0

    process = start([*words, f"--run_dir={stopped}"])
    wait_for_line(stopped / "metrics.jsonl", step=8)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 75
    assert "SIGTERM received: stopped after step" in output
    assert RunWatch(stopped).status().state == "stopped"
    assert len(list((stopped / "checkpoints").iterdir())) == 1

    assert unibert(*words, f"--run_dir={stopped}")[0] == 0
    assert lines_without_timing(stopped) == lines_without_timing(undisturbed)
    status = RunWatch(stopped).status()
    assert (status.state, status.starts, status.step, status.num_steps) == ("finished", 2, 50, 50)


@pytest.mark.slow
def test_a_half_written_checkpoint_is_not_loaded(run_file, tmp_path, unibert):
    run_dir = tmp_path / "run"
    assert unibert("pretrain", str(run_file))[0] == 0
    before = lines_without_timing(run_dir)
    newest = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    half = newest.with_name(f".partial-{newest.name}")
    newest.rename(half)
    next(half.rglob("*model_states.pt")).write_bytes(b"cut off")
    assert unibert("pretrain", str(run_file))[0] == 0
    assert lines_without_timing(run_dir) == before
    assert not half.exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("--seed=7", "belongs to a run of another configuration: seed was 0 and is now 7"),
        ("--training.ds_config=zero1", "was saved with zero stage 0, this start has 1"),
    ],
)
def test_a_finished_run_refuses_another_configuration(run_file, tmp_path, unibert, override, sentence):
    short = ["pretrain", str(run_file), "--training.tokens=1024"]
    assert unibert(*short)[0] == 0
    status, output = unibert(*short, override)
    assert status == 1
    assert sentence in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_of_two_starts_of_one_run_the_later_one_goes_on(run_file, tmp_path):
    undisturbed, run_dir = tmp_path / "undisturbed", tmp_path / "run"
    words = ["pretrain", str(run_file), "--training.checkpoint_every=3", f"--training.tokens={250 * 8 * 64}"]
    printed = {name: tmp_path / f"{name}.txt" for name in ("earlier", "later", "undisturbed")}
    earlier = fork_ranks([*words, f"--run_dir={run_dir}"], 2, printed["earlier"])
    wait_for_line(run_dir / "metrics.jsonl", step=5)
    later = fork_ranks([*words, f"--run_dir={run_dir}"], 2, printed["later"])
    assert statuses(earlier, timeout=120) == [1, 1]
    output = printed["earlier"].read_text()
    [sentence] = re.findall("unibert: error: .*", output)
    assert f"{run_dir}: process {later[0].pid} on " in sentence
    assert "has started this run again and continues it; this process ends and writes nothing more" in sentence
    assert "Traceback" not in output
    assert statuses(later, timeout=300) == [0, 0], printed["later"].read_text()
    alone = fork_ranks([*words, f"--run_dir={undisturbed}"], 2, printed["undisturbed"])
    assert statuses(alone, timeout=300) == [0, 0], printed["undisturbed"].read_text()
    assert lines_without_timing(run_dir) == lines_without_timing(undisturbed)
