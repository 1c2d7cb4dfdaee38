"""Threads in the background leave the cores to the one that trains: torch starts no further threads for them.

In processes of their own, since torch's threads are those of a whole process.
"""

import os
import subprocess
import sys

import pytest

from tests.training.processes import placement

THREADS = """
import os, time
from pathlib import Path
import torch
from unibert.stream.background import Background
from unibert.training.checkpoint.manager import Checkpoints
from unibert.training.checkpoint.retention import RetentionPolicy
from unibert.training.ranks.collectives import join

def count():
    return len(os.listdir("/proc/self/task"))

join()
torch.set_num_threads(2)
torch.ones(2**24)
before = count()
{work}
most = 0
for _ in range(20):
    time.sleep(0.05)
    most = max(most, count())
print(most - before, torch.get_num_threads())
"""
STREAM = "background = Background(); background.start(lambda: torch.ones(2**24))"
CHECKPOINTS = """
keep = RetentionPolicy(last=1)
checkpoints = Checkpoints(
    Path("none"), keep=keep, claim=None, rank=0, world_size=1, zero_stage=0, ema_half_life=None, optimizer="adamw"
)
checkpoints.reserve_memory(2**26, pinned=False)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("work", [STREAM, CHECKPOINTS], ids=["stream", "checkpoints"])
def test_a_background_thread_is_one_thread(work, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in placement(0, 1, 0)}
    done = subprocess.run(
        [sys.executable, "-c", THREADS.format(work=work)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "2"]
