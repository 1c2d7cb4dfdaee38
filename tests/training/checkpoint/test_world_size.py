"""A run saved on N ranks continues on M: the same batches, the same state, the same losses."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.compare import largest_relative_difference
from tests.training.conftest import run_to_end, start
from tests.training.forked_ranks import LOSS_SCALE, train_and_restore
from tests.training.processes import fork, fork_ranks, statuses
from unibert.cli import main
from unibert.environment import describe_environment
from unibert.training.checkpoint.retention import rank_checkpoint_bytes
from unibert.training.checkpoint.universal import SPACE_FACTOR
from unibert.training.engine import DS_CONFIGS
from unibert.training.metrics_file import read_metrics

# Every sum runs in fp32 (24-bit mantissa, 6e-8), over at most a few thousand terms in another order on other ranks; 12
# steps of AdamW amplify that. A moment or a counter that is lost shows in the third digit.
FIVE_DIGITS = 1e-5
# bf16 (8-bit mantissa, 4e-3) rounds the gradients of each micro-batch, of which there are other ones on other ranks.
BF16 = 2e-2

QUICK = [(3, "fp32")]
SLOW = [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]

SETTINGS = [
    f"--training.tokens={12 * 8 * 64}",
    "--training.checkpoint_every=4",
    "--training.keep_checkpoints=9",
    # Two biases and three: four ranks under ZeRO 1 and 2 have no part of that group each.
    "--adversary.intermediate_size=1",
]


def ds_config(folder: Path, stage: int, kind: str = "fp32") -> str:
    """The option that takes the shipped ds_config of ``stage`` in fp32 or bf16, or the one that offloads, in fp32."""
    name = f"zero{stage}_offload" if kind == "offload" else f"zero{stage}"
    config = json.loads((DS_CONFIGS / f"{name}.json").read_text()) | {"bf16": {"enabled": kind == "bf16"}}
    if stage == 3:
        # DeepSpeed would keep parameters as small as these whole on every rank.
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return f"--training.ds_config={path}"


def forget_after(run_dir: Path, step: int) -> None:
    """As if the run had been killed before its next checkpoint."""
    for checkpoint in (run_dir / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


def seconds_of_conversion(output: str) -> list[float]:
    return [float(line.split()[-2]) for line in output.splitlines() if line.startswith("unibert: converted in")]


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, Any]]:
    """What the tests measure; written to the file that UNIBERT_FIGURES names."""
    found: dict[str, Any] = {}
    yield found
    if file := os.environ.get("UNIBERT_FIGURES"):
        command = (
            "UNIBERT_FIGURES=docs/benchmarks/world-size.json pytest -m '' tests/training/checkpoint/test_world_size.py"
        )
        content = {"environment": describe_environment(), "command": command, **found}
        Path(file).write_text(json.dumps(content, indent=1) + "\n")


@pytest.fixture(scope="module")
def two_ranks(module_run_file, tmp_path_factory) -> Callable[[int, str], tuple[list[str], Path]]:
    """The command and the folder of an undisturbed run on two ranks."""
    done: dict[tuple[int, str], tuple[list[str], Path]] = {}

    def run(stage: int, precision: str) -> tuple[list[str], Path]:
        if (stage, precision) not in done:
            folder = tmp_path_factory.mktemp(f"zero{stage}")
            words = ["pretrain", str(module_run_file), *SETTINGS, ds_config(folder, stage, precision)]
            status, output = run_to_end(*words, f"--run_dir={folder / 'run'}", ranks=2)
            assert status == 0, output
            done[stage, precision] = words, folder / "run"
        return done[stage, precision]

    return run


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_two_ranks_then_one_then_four(stage, precision, two_ranks, tmp_path, unibert, figures):
    words, undisturbed = two_ranks(stage, precision)
    moved = tmp_path / "run"
    shutil.copytree(undisturbed, moved)
    seconds = []
    for step, ranks in ((4, 1), (8, 4)):
        forget_after(moved, step)
        status, output = unibert(*words, f"--run_dir={moved}", "--training.keep_checkpoints=2", ranks=ranks)
        assert status == 0, output
        seconds += seconds_of_conversion(output)

    runs = [read_metrics(run / "metrics.jsonl").records for run in (undisturbed, moved)]
    batches = [[line["batch_checksum"] for line in lines if "loss" in line] for lines in runs]
    assert batches[0] == batches[1]
    assert len(set(batches[0])) == 12
    if precision == "fp32":
        assert largest_relative_difference(undisturbed, moved) < FIVE_DIGITS
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in runs]
    difference = max(abs(before - after) / before for before, after in zip(*losses, strict=True))
    assert difference < BF16
    # The converted checkpoint of step 8 is still kept, with its conversion; that of step 4 has gone with its own.
    converted = (moved / "checkpoints").glob("step-*/universal")
    assert [path.parent.name for path in converted] == ["step-00000008"][: bool(stage)]
    assert len(seconds) == (2 if stage else 0)
    figures.setdefault("2 to 1 to 4 ranks", {})[f"ZeRO {stage}, {precision}"] = {
        "largest_relative_loss_difference": difference,
        "seconds_of_conversion": seconds,
    }


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_each_rank_writes_what_memory_is_reserved_for(stage, precision, two_ranks, tmp_path, monkeypatch):
    words, run_dir = two_ranks(stage, precision)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    main(["plan", *words[1:], "--gpus=2", "--gpu=cpu", f"--output={tmp_path / 'plan.json'}"])
    parameters = sum(json.loads((tmp_path / "plan.json").read_text())["parameters"].values())
    moments = 2 * parameters
    written = [0, 0]
    for path in (run_dir / "checkpoints" / "step-00000012" / "state").iterdir():
        rank = re.search(r"zero_pp_rank_(\d)", path.name)
        written[int(rank[1]) if rank else 0] += path.stat().st_size
    itemsize = 4 if precision == "fp32" else 2
    reserved = [rank_checkpoint_bytes(stage, parameters, itemsize, moments, rank=rank, world_size=2) for rank in (0, 1)]
    # The tensors' names and shapes come on top; a state left out, of 2 bytes a parameter over two ranks, would be twice
    # this margin.
    for found, planned in zip(written, reserved, strict=True):
        assert 0 <= found - planned < parameters / 2


@pytest.mark.slow
def test_zero_1_and_2_continue_each_other(two_ranks, tmp_path, unibert):
    words, undisturbed = two_ranks(1, "fp32")
    moved = tmp_path / "run"
    shutil.copytree(undisturbed, moved)
    for step, stage, ranks in ((4, 2, 2), (8, 1, 1)):
        forget_after(moved, step)
        status, output = unibert(*words, ds_config(tmp_path, stage), f"--run_dir={moved}", ranks=ranks)
        assert status == 0, output
        assert len(seconds_of_conversion(output)) == 1
    assert largest_relative_difference(undisturbed, moved) < FIVE_DIGITS


def test_a_conversion_that_is_killed_or_fails_leaves_nothing(two_ranks, tmp_path):
    words, undisturbed = two_ranks(1, "fp32")
    moved = tmp_path / "run"
    shutil.copytree(undisturbed, moved)
    newest = moved / "checkpoints" / "step-00000012"
    partial, complete = newest / ".partial-universal", newest / "universal"
    words = [*words, f"--run_dir={moved}"]

    for _ in range(5):
        process = start(words)
        while process.poll() is None and not (partial.exists() or complete.exists()):
            time.sleep(0.001)
        process.kill()
        process.communicate()
        if not complete.exists():
            break
        # The kill came too late.
        shutil.rmtree(complete)
    assert partial.exists()
    assert not complete.exists()

    # A limit on the size of files stands for a full disk; the largest parameter has 77 kB.
    process = start(words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    change = "from world size 2, ZeRO 1 to world size 1, ZeRO 1"
    assert f"unibert: error: {newest}: cannot be converted {change}: DeepSpeed failed (" in output
    assert "the disk may be full" in output
    assert "start the run as it was saved" in output
    assert "Traceback" not in output
    assert not partial.exists()
    assert not complete.exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_space_that_a_conversion_takes(stage, run_file, tmp_path, figures):
    """At most the space that is asked for beforehand; on one rank ZeRO 3 takes the most."""
    # The figures in docs/results.md are those of the larger model.
    hidden_size = 512 if os.environ.get("UNIBERT_FIGURES") else 256
    size = {"hidden_size": hidden_size, "num_hidden_layers": 8, "num_attention_heads": 8}
    size["intermediate_size"] = 2 * hidden_size
    words = ["pretrain", str(run_file), f"--model.config={json.dumps(size)}", ds_config(tmp_path, stage)]
    words += [f"--training.tokens={2 * 8 * 64}", "--training.checkpoint_every=1", "--training.keep_checkpoints=9"]
    assert run_to_end(*words)[0] == 0
    forget_after(tmp_path / "run", 1)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000001"
    saved = size_of(checkpoint)
    printed = tmp_path / "printed.txt"
    ranks = fork_ranks(words, 2, printed)
    largest = 0
    while not (checkpoint / "universal").exists():
        assert ranks[0].is_alive(), printed.read_text()
        largest = max(largest, size_of(checkpoint) - saved)
        time.sleep(0.005)
    kept = size_of(checkpoint) - saved
    assert statuses(ranks, timeout=300) == [0, 0], printed.read_text()
    assert largest < SPACE_FACTOR * saved
    figures.setdefault("conversion", {})[f"ZeRO {stage}"] = {
        "checkpoint_bytes": saved,
        "largest_bytes": largest,
        "kept_bytes": kept,
        "seconds": seconds_of_conversion(printed.read_text())[0],
    }


def size_of(folder: Path) -> int:
    """Of all files that there are, in bytes, while others come and go."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(path) / name).stat().st_size
    return total


def test_others_wait_longer_than_a_collective_may_last():
    finished = subprocess.run([sys.executable, "-c", LONG_WORK], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert sorted(re.findall(r"rank \d done", finished.stdout)) == ["rank 0 done", "rank 1 done"]


LONG_WORK = """
import time
from datetime import timedelta
import torch.distributed as dist
from tests.training.forked_ranks import on_ranks
from unibert.training.ranks.collectives import run_on_rank_0

def rank():
    dist.init_process_group("gloo", timeout=timedelta(seconds=2))
    run_on_rank_0(lambda: time.sleep(6), heartbeat=0.5)
    print(f"rank {dist.get_rank()} done", flush=True)

on_ranks(2, rank)
"""


OFFLOAD = [pytest.param(stage, "offload", marks=pytest.mark.slow) for stage in (1, 3)]


@pytest.mark.parametrize(("stage", "kind"), CASES + OFFLOAD)
def test_all_state_comes_back_exactly(stage, kind, run_file, tmp_path):
    words = ["--config", str(run_file), *SETTINGS, ds_config(tmp_path, stage, kind), f"--training.tokens={4 * 8 * 64}"]
    printed = tmp_path / "printed.txt"
    assert statuses([fork(printed, train_and_restore, words, tmp_path)], timeout=500) == [0], printed.read_text()
    saved, *restored = (torch.load(tmp_path / f"{ranks}.pt") for ranks in (2, 1, 4))
    assert saved["optimizer steps"] == {4.0}
    assert saved["loss scale"] == (None if stage == 0 else LOSS_SCALE)
    assert any(tensor.dtype == torch.bfloat16 for tensor in saved["tensors"].values()) == (kind == "bf16")
    for other in restored:
        assert other["tensors"].keys() == saved["tensors"].keys()
        different = [name for name, value in saved["tensors"].items() if not torch.equal(value, other["tensors"][name])]
        assert different == []
        assert {**other, "tensors": None} == {**saved, "tensors": None}
