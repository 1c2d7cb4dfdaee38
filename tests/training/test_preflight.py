"""A rank that never starts is named. The other checks of preflight are tested under Slurm, in tests/slurm."""

import os
import re
import subprocess
import sys

import pytest

from tests.training.processes import placement
from unibert.launcher import free_port

IMPATIENT = """
import sys
from datetime import timedelta
from unibert.cli import main
from unibert.training import preflight
preflight.MAX_START = timedelta(seconds=3)
main(["preflight", *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    ("rank", "sentence"),
    [
        (0, r"preflight: no message for 3 s from rank 1 \(\S+\); check whether these nodes are up"),
        (1, r"preflight: \S+: rank 0 on 127.0.0.1 does not respond; check the network between the two"),
    ],
)
def test_a_rank_that_never_comes_is_named(rank, sentence, run_file):
    place = {**placement(rank, 2, free_port()), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, str(run_file)],
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    [said] = re.findall("unibert: error: (.*)", done.stderr)
    assert re.fullmatch(sentence, said)


def test_ranks_with_too_few_cores_are_warned(run_file):
    script = "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from unibert.cli import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{script}main(['preflight', *sys.argv[1:]])", str(run_file), "--stream.num_workers=2"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "1 cores per rank, but a rank with 2 loader processes uses 4; give --cpus-per-task=4 to sbatch, or lower "
        "stream.num_workers"
    ) in done.stderr
    assert "preflight: 1 nodes, 1 ranks" in done.stderr
