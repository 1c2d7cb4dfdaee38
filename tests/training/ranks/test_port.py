"""The port on which rank 0 listens for the other ranks."""

import os
import re
import socket
import subprocess
import sys

import pytest

from tests.training.processes import placement

LONE_RANK = """
import os, socket
from unibert.training.ranks.collectives import join
from unibert.training.ranks.placement import place_from_environment
place_from_environment()
# Another process takes the port before torch listens on it; 0 is any free port.
taken = socket.create_server(("", int(os.environ["MASTER_PORT"])))
print(join().world_size)
"""


def test_a_run_alone_takes_any_port_that_is_free():
    environment = {name: value for name, value in os.environ.items() if name not in placement(0, 1, 0)}
    done = subprocess.run(
        [sys.executable, "-c", LONE_RANK], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1"]


@pytest.mark.parametrize("command", ["pretrain", "preflight"])
def test_a_port_that_is_taken_is_named(command, run_file):
    with socket.create_server(("", 0)) as stranger:
        port = stranger.getsockname()[1]
        place = {**placement(0, 2, port), "LOCAL_WORLD_SIZE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "unibert", command, str(run_file)],
            env={**os.environ, **place},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    [said] = re.findall("unibert: error: (.*)", done.stderr)
    assert re.fullmatch(
        rf"rank 0 \(\S+\): another process listens on port {port}; choose another port, with --master_port under the "
        "deepspeed launcher, with MASTER_PORT elsewhere",
        said,
    )
