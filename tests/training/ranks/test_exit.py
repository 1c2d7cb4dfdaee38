"""A run's exit status is its own, whatever other threads do while the process ends."""

import os
import subprocess
import sys

import pytest

# Stands in for a thread of gloo, which seldom comes at the right moment: one that is in torch, without the
# interpreter's lock, when the interpreter goes down and asks for the lock after that.
BUSY_THREAD = """
import sys, threading, time

def work():
    while "unibert.training.loop" not in sys.modules:
        time.sleep(0.05)
    import torch
    matrix = torch.ones(64, 64)
    print("busy", file=sys.stderr, flush=True)
    while True:
        torch.mm(matrix, matrix)

threading.Thread(target=work, daemon=True).start()
"""


@pytest.mark.parametrize(
    ("override", "status", "last_line"),
    [
        ("--training.log_every=1", 0, "The model is in "),
        ("--optimizer.learning_rate=1e30", 1, "unibert: error: step 2: "),
    ],
)
def test_a_thread_that_is_busy_at_the_end_spoils_nothing(override, status, last_line, run_file, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BUSY_THREAD)
    words = ["pretrain", str(run_file), f"--training.tokens={2 * 8 * 64}", override]
    done = subprocess.run(
        [sys.executable, "-m", "unibert", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
        timeout=120,
    )
    assert done.returncode == status, done.stdout
    assert "busy" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(last_line), done.stdout
