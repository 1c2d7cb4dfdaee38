"""A run's exit status does not depend on what other threads do while the process ends."""

import os
import subprocess
import sys

import pytest

# Stands in for a thread of gloo, which rarely hits the right moment: a thread that is inside torch, without the
# interpreter's lock, when the interpreter shuts down, and that requests the lock afterwards.
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
    ("rate", "status", "last_line"),
    [
        (1e-3, 0, "The model is in "),
        (1e30, 1, "unibert: error: step 2: "),
    ],
)
def test_a_busy_thread_does_not_change_the_exit_status(rate, status, last_line, run_file, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BUSY_THREAD)
    words = ["pretrain", str(run_file), f"--training.tokens={2 * 8 * 64}", "--training.max_bad_steps=1"]
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "unibert", *words, f"--optimizer.learning_rate={rate}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        timeout=120,
    )
    assert done.returncode == status, done.stdout
    assert "busy" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(last_line), done.stdout
