"""A job with a bad node does not start, and its log names the node and the problem."""

import re

import pytest

from tests.slurm.lab import Lab
from tests.slurm.test_pretrain import submit

CLOCK_AHEAD = """
import socket, time
if socket.gethostname() == "n2":
    true_time = time.time
    time.time = lambda: true_time() + 60
"""

# With two clocks, neither is known to be right.
OFFSETS = {"n1": -30, "n2": 30}


def preflight_error(lab: Lab, job: str) -> str:
    """Return the sentence with which a job ended before it trained."""
    assert lab.wait(job) == "FAILED", lab.log(job)
    assert lab.restarts(job) == 0
    assert "step 1/" not in lab.log(job)
    [sentence] = re.findall("unibert: error: preflight: (.*)", lab.log(job))
    return sentence


def test_disk_and_run_folder(lab, run_file, tmp_path):
    temporary = tmp_path / "tmp"
    for folder in (temporary, tmp_path / "run"):
        folder.mkdir()
    lab.on_node("n2", f"mount -t tmpfs -o size=1m tmpfs {temporary}; mount -t tmpfs -o ro tmpfs {tmp_path / 'run'}")
    try:
        job = submit(lab, run_file, tmp_path / "run", options=(f"--export=ALL,TMPDIR={temporary}",))
        problems = preflight_error(lab, job).split("; ")
    finally:
        lab.on_node("n2", f"umount {temporary} {tmp_path / 'run'}")
    assert problems == [
        f"n2: {temporary} has 0.00 GiB free, but needs 0.5",
        f"n2: {tmp_path / 'run'} cannot be written (Read-only file system)",
    ]


def test_gpus_and_clock(lab, run_file, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(CLOCK_AHEAD)
    options = ("--gpus-per-node=2", f"--export=ALL,PYTHONPATH={tmp_path}")
    sentence = preflight_error(lab, submit(lab, run_file, tmp_path / "run", options=options))
    no_gpus = "Slurm allocated 2 GPUs but torch sees 0, run nvidia-smi there"
    clocks = [
        f"{node}: its clock differs by {seconds:+d} s from the others, set it (NTP)"
        for node, seconds in OFFSETS.items()
    ]
    assert sentence.split("; ") == [f"n1: {no_gpus}", f"n2: {no_gpus}", *clocks]


@pytest.mark.slow
def test_a_slow_network(lab, run_file, tmp_path, slow_network):
    sentence = preflight_error(lab, submit(lab, run_file, tmp_path / "run"))
    assert re.fullmatch(r"n1, n2: all-reduce at 0\.00\d+ GB/s, at least 0\.01 expected", sentence)
