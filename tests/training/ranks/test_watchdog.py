"""A rank that hangs or dies is named, and the run ends."""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.training.conftest import start
from tests.training.processes import rank_process, start_without_launcher, wait_for_line

TIMEOUT_S = 24.0
"""Longer than the ranks of a busy machine take to build their engines, one of which may wait for the other."""
END_S = 120.0
"""Timeout, ticks of the watchdog, its question to the others, 30 s in which the deepspeed launcher waits for a stopped
process to obey SIGTERM, and a loaded machine; far less than the default timeout of 15 minutes."""


def start_long_run(run_file: Path, run_dir: Path, *overrides: str) -> subprocess.Popen[str]:
    timeout = f"--training.collective_timeout_minutes={TIMEOUT_S / 60}"
    words = ["pretrain", str(run_file), f"--run_dir={run_dir}", timeout, "--training.tokens=1000000", *overrides]
    return start(words, ranks=2, start_new_session=True)


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named_and_all_end(run_file, tmp_path):
    runs = {hung: start_long_run(run_file, tmp_path / f"hung{hung}") for hung in (0, 1)}
    for hung, process in runs.items():
        wait_for_line(tmp_path / f"hung{hung}" / "metrics.jsonl", step=5)
        os.kill(rank_process(process.pid, rank=hung), signal.SIGSTOP)
    for hung, process in runs.items():
        output, _ = process.communicate(timeout=END_S)
        assert process.returncode == 76, output
        [sentence] = re.findall("unibert: error: .*", output)
        assert f"no collective has ended for 24 s: rank {hung} (" in sentence
        assert "does not respond" in sentence
        assert not pythons_of_session(process.pid)


@pytest.mark.slow
def test_a_rank_that_waits_for_something_else_is_named_with_the_place(run_file, tmp_path):
    process = start_long_run(run_file, tmp_path / "run", "--stream.num_workers=1")
    wait_for_line(tmp_path / "run" / "metrics.jsonl", step=5)
    rank = rank_process(process.pid, rank=1)
    [loader] = Path(f"/proc/{rank}/task/{rank}/children").read_text().split()
    os.kill(int(loader), signal.SIGSTOP)
    try:
        process.wait(timeout=END_S)
    finally:
        # It may have gone with its rank.
        with suppress(ProcessLookupError):
            os.kill(int(loader), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 76, output
    [sentence] = re.findall("unibert: error: .*", output)
    assert re.search(r"rank 1 \(\S+\) is \d+ collectives? behind, in \w+ \(unibert/stream/", sentence), sentence


@pytest.mark.parametrize("killed", [0, 1])
def test_a_death_is_noticed_outside_of_collectives_too(killed, run_file, tmp_path):
    """And so in a collective of gloo that does not notice it, which takes a kill in the middle of a message."""
    words = ["pretrain", str(run_file), "--stream.num_workers=1", "--training.tokens=1000000"]
    printed = tmp_path / "printed.txt"
    ranks = start_without_launcher(words, 2, printed)
    wait_for_line(tmp_path / "run" / "metrics.jsonl", step=5)
    survivor = ranks[1 - killed]
    [loader] = Path(f"/proc/{survivor.pid}/task/{survivor.pid}/children").read_text().split()
    os.kill(int(loader), signal.SIGSTOP)
    try:
        # Until it has used up what was loaded ahead.
        time.sleep(3)
        ranks[killed].kill()
        assert survivor.wait(timeout=END_S) == 76, printed.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(loader), signal.SIGKILL)
        survivor.kill()
    [sentence] = re.findall("unibert: error: .*", printed.read_text())
    assert re.fullmatch(
        rf"unibert: error: rank {killed} \(\S+\) has ended; its own message says why, or the system log if it "
        "was killed; the same command continues from the newest checkpoint",
        sentence,
    )


def pythons_of_session(leader: int) -> list[str]:
    listed = subprocess.run(["ps", "-o", "args=", "-s", str(leader)], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if Path(line.split()[0]).name.startswith("python")]
