"""`unibert watch`, on folders of runs in every state."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.refusals import refused
from tests.reports.test_run_page import heldout_line, training_line
from unibert.cli import main
from unibert.errors import UserError
from unibert.reports.run_screen import sparkline
from unibert.reports.run_status import RunWatch
from unibert.schedules import Timeline
from unibert.training.checkpoint.claim import Claim
from unibert.training.ranks.signals import Preempted
from unibert.training.run_history import RunHistory

TIMELINE = Timeline(200 * 4096, 8, 512)


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "config.yaml").write_text("training: {tokens: 819200, global_batch_size: 8, sequence_length: 512}\n")
    append(tmp_path, *(training_line(step) for step in range(10, 60, 10)), heldout_line(50, 4.25))
    return tmp_path


def append(run_dir, *lines):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def begin(history: RunHistory, run_dir):
    history.begin(run_dir, Claim(run_dir), TIMELINE)


def end_with(run_dir, error):
    with suppress(type(error)), RunHistory() as history:
        begin(history, run_dir)
        raise error


def printed(capsys, *words):
    main(["watch", *map(str, words)])
    return capsys.readouterr().out


def set_age(run_dir, seconds):
    for path in run_dir.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def test_a_run_that_trains(run_dir, capsys):
    append(
        run_dir,
        training_line(
            60,
            mfu=0.4321,
            left_out_steps={"loss": 2},
            adversary_accuracy=0.4,
            adversary_chance=0.25,
            reversal_lambda=0.5,
            distillation_hidden_loss=0.125,
            tokens_per_second=4096,
            seconds_per_step={"data": 0.125, "forward": 0.5, "backward": 0.25, "update": 0.125},
        ),
    )
    before = {path: path.stat().st_mtime_ns for path in run_dir.iterdir()}
    with RunHistory() as history:
        begin(history, run_dir)
        seen = printed(capsys, run_dir, "--once")
    assert f"running as process {os.getpid()} on {socket.gethostname()}" in seen
    assert "30.0%  step 60 of 200  246k of 819k tokens" in seen
    # At the median of 30,000 tokens per second.
    assert "19 s to go" in seen
    lines = {" ".join(line.split()) for line in seen.splitlines()}
    assert "MLM loss 4.400 10.0% correct" in lines
    assert "held-out MLM loss 4.250 after step 50, token frequencies alone 6.000" in lines
    assert "adversary 40.0% chance 25.0%, λ 0.5" in lines
    assert "distillation hidden 0.1250" in lines
    assert "tokens/s 4,096 43.2% of the peak, 2.0 GiB" in lines
    assert "waits for data 12.5% of 1 s per step" in lines
    assert "steps left out 2 their loss or gradient was not finite" in lines
    after = {path: path.stat().st_mtime_ns for path in run_dir.iterdir()}
    assert {path: after[path] for path in before} == before
    assert {path.name for path in after.keys() - before.keys()} == {"history.jsonl", "start.json"}


def test_how_a_run_ended(run_dir, capsys):
    end_with(run_dir, Preempted("SIGTERM received: stopped after step 55, checkpoint saved"))
    assert "stopped 0 s ago; the same command continues (SIGTERM received: stopped after step 55" in printed(
        capsys, run_dir
    )
    end_with(run_dir, UserError("the disk is full"))
    assert "ended with an error 0 s ago: the disk is full\n" in printed(capsys, run_dir)
    end_with(run_dir, ValueError("a mistake\nof this program"))
    assert "ended with an error 0 s ago: ValueError: a mistake of this program\n" in printed(capsys, run_dir, "--once")
    with RunHistory() as history:
        begin(history, run_dir)
    seen = printed(capsys, run_dir)
    assert seen.startswith("step 50/200 (25.0%)  MLM loss 4.500")
    assert seen.endswith("starts 4  finished 0 s ago\n")


def test_a_start_that_another_has_followed_records_no_end(run_dir):
    with RunHistory() as later:
        with RunHistory() as earlier:
            begin(earlier, run_dir)
            begin(later, run_dir)
        assert RunWatch(run_dir).status().state == "running"
    assert RunWatch(run_dir).status().state == "finished"


def test_a_run_that_says_nothing_more(run_dir):
    watch = RunWatch(run_dir)
    assert watch.status().state == "running"
    set_age(run_dir, 3600)
    assert watch.status().sentence == "silent: it has written nothing for 60 min"
    append(run_dir, *(training_line(step) for step in range(60, 210, 10)))
    set_age(run_dir, 3600)
    assert watch.status().state == "finished"

    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    begin(RunHistory(), run_dir)
    path = run_dir / "history.jsonl"
    start = json.loads(path.read_text())
    path.write_text(json.dumps(start | {"pid": child.pid}) + "\n")
    assert watch.status().sentence.startswith(f"ended without a word as process {child.pid} on {socket.gethostname()}:")
    path.write_text(json.dumps(start | {"pid": child.pid, "host": "elsewhere"}) + "\n")
    assert watch.status().sentence == f"running as process {child.pid} on elsewhere"
    set_age(run_dir, 3600)
    assert watch.status().state == "silent"


def test_what_is_new_in_the_metrics(run_dir):
    watch = RunWatch(run_dir)
    assert watch.status().step == 50
    path = run_dir / "metrics.jsonl"
    line = json.dumps(training_line(60)) + "\n"
    with path.open("a") as file:
        file.write(line[:30])
        file.flush()
        assert watch.status().step == 50
        file.write(line[30:])
    assert watch.status().step == 60
    assert watch.status().metrics.losses == [5 - step / 100 for step in range(10, 70, 10)]
    # A resumed run drops the lines of the steps that it repeats.
    kept = path.with_suffix(".new")
    kept.write_text("".join(json.dumps(training_line(step)) + "\n" for step in (10, 20)))
    kept.replace(path)
    append(run_dir, *(training_line(step) for step in range(30, 100, 10)))
    assert watch.status().step == 90
    assert len(watch.status().metrics.losses) == 9


def test_a_run_before_its_first_line(run_dir, capsys):
    (run_dir / "metrics.jsonl").unlink()
    with RunHistory() as history:
        begin(history, run_dir)
        assert "0.0%  step 0 of 200  0 of 819k tokens" in printed(capsys, run_dir, "--once")


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert "is not a run folder (it has no config.yaml)" in refused(capsys, "watch", tmp_path)[1]


def test_a_curve_of_means():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 40) == "▁▂▃▄▅▆▇█"
    assert sparkline([2, 0, 4, 10, 2, 2], 3) == "▁█▂"
    assert sparkline([3.0, 3.0], 40) == "▁▁"
