"""A demo that is stopped ends its ranks too."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.processes import wait_for_line


@pytest.mark.slow
def test_sigterm_to_the_demo_alone_ends_its_ranks_after_a_checkpoint(tmp_path):
    output = tmp_path / "demo"
    demo = subprocess.Popen(
        [sys.executable, "-m", "unibert", "demo", f"--output={output}"],
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_for_line(output / "teacher" / "metrics.jsonl", step=1)
    demo.terminate()
    _, printed = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "unibert: error: stopped; the same command continues" in printed
    deadline = time.monotonic() + 30
    while (left := processes_of(output)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    assert len(list((output / "teacher" / "checkpoints").glob("step-*"))) == 1


def processes_of(output: Path) -> list[str]:
    """Return the command lines of running processes that name the demo's folder."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if f"--run_dir={output}" in line]
