"""A Slurm of two nodes, or a reason to skip the tests; and a corpus and a run file for its jobs."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.slurm.lab import REPOSITORY, Lab, missing_commands, wait_until


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    if missing := missing_commands():
        skip(f"no Slurm here ({', '.join(missing)} missing): apt-get install munge slurmctld slurmd slurm-client")
    if os.geteuid() != 0:
        skip("starting Slurm needs root")
    # pytest's folder may be too long: the path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        lab = Lab(Path(folder))
        try:
            try:
                lab.up()
            except (RuntimeError, OSError) as error:
                skip(f"Slurm is installed but does not start here: {error}")
            yield lab
        finally:
            lab.down()


@pytest.fixture(autouse=True)
def cancel_jobs(lab: Lab) -> Iterator[None]:
    yield
    lab.run("scancel", "--user=root")
    wait_until(lambda: not lab.run("squeue", "--noheader"), 120)


@pytest.fixture
def slow_network(lab: Lab) -> Iterator[None]:
    """What n2 sends to n1 is slow, so that a step takes half a second, of which the processors have little to do."""
    lab.on_node("n2", "tc qdisc add dev eth0 root tbf rate 40mbit burst 64k latency 400ms")
    yield
    lab.on_node("n2", "tc qdisc del dev eth0 root")


def skip(reason: str) -> None:
    """Skip the test, or fail it if UNIBERT_SLURM_TESTS requires Slurm."""
    if os.environ.get("UNIBERT_SLURM_TESTS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def demo_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    options = ["--vocab_size=6000", "--heldout_share=0.1", "--tokens_per_shard=2500"]
    subprocess.run(
        [sys.executable, "-m", "unibert", "corpus", "build", "unibert/demo/wiki", f"--output={folder}", *options],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="session")
def run_file(demo_corpus: Path) -> Path:
    """A tiny model on the demo's corpus, 1200 steps of about 50 ms; each test overrides the run folder."""
    run = {
        "run_dir": "overridden",
        "corpus": str(demo_corpus),
        "training": {
            "tokens": 1200 * 16 * 128,
            "global_batch_size": 16,
            "micro_batch_size": 8,
            "sequence_length": 128,
            "log_every": 1,
            "checkpoint_every": 100,
            "ds_config": "zero1",
        },
        "stream": {"lanes": 8, "window_shards": 2},
        "model": {
            "config": {
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 96,
                "local_attention": 32,
            }
        },
        "adversary": {"max_lambda": 0.1},
    }
    path = demo_corpus.with_name("run.yaml")
    path.write_text(yaml.safe_dump(run))
    return path
