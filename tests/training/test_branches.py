"""Runs that begin at a checkpoint of another."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.training.checkpoints import damage_later_checkpoints
from tests.training.compare import lines_without_timing
from tests.training.conftest import run_to_end, write_run_file
from unibert.training.metrics_file import read_metrics

STEP_TOKENS = 8 * 64
CONSTANT = {"optimizer": {"warmup": 0.0, "decay": 0.0}, "adversary": {"ramp": "constant", "warmup": 0.0}}
"""Settings with which no step depends on the length of the run."""

Start = Callable[..., Path]


@pytest.fixture(scope="module")
def start(corpus, tmp_path_factory) -> Start:
    """Train a run with these options, and return its folder."""
    root = tmp_path_factory.mktemp("branches")
    run_file = write_run_file(corpus, root)
    run = yaml.safe_load(run_file.read_text())
    for section, settings in CONSTANT.items():
        run[section] |= settings
    run["training"] |= {"checkpoint_every": 4, "keep_checkpoints": 9, "evaluate_every": 0, "tokens": 12 * STEP_TOKENS}
    run_file.write_text(yaml.safe_dump(run))

    def train(name: str, *options: str, ranks: int = 1, says: str = "") -> Path:
        status, output = run_to_end("pretrain", str(run_file), f"--run_dir={root / name}", *options, ranks=ranks)
        assert status == 0, output
        assert says in output
        return root / name

    return train


@pytest.fixture(scope="module")
def parent(start) -> Path:
    return start("parent")


def after(run_dir: Path, step: int) -> list[dict]:
    return [line for line in lines_without_timing(run_dir) if line["step"] > step]


def test_a_branch_of_an_unchanged_run_is_its_continuation(start, parent, tmp_path):
    source = Path(shutil.copytree(parent, tmp_path / "source"))
    options = ["unchanged", f"--resume_from={source}@4"]
    branch = start(*options, says=f"is a branch of {source} at step 4, after 2,048 tokens; its stream goes on where")
    assert after(branch, 4) == after(parent, 4)
    (first,) = (line for line in lines_without_timing(branch) if line["step"] == 4)
    assert (first["stream"], first["changed"], first["scheduled"]) == ("continues", {}, {})
    # It is interrupted before its first own checkpoint, when there is no parent any more.
    shutil.rmtree(source)
    damage_later_checkpoints(branch)
    whole = lines_without_timing(branch)
    start(*options)
    assert lines_without_timing(branch) == whole


def test_a_run_extended_by_tokens_is_the_run_that_had_them_from_the_start(start, parent):
    more = f"--training.tokens={20 * STEP_TOKENS}"
    whole, extended = start("whole", more), start("extended", more, f"--resume_from={parent}")
    assert after(extended, 12) == after(whole, 12)
    assert len(read_metrics(extended / "metrics.jsonl").training) == 8
