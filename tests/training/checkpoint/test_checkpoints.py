"""Checkpoints: what is kept, what is read again, and what happens where they cannot be written."""

import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.training.compare import lines_without_timing
from tests.training.conftest import run_to_end, start
from unibert.files import file_sha256
from unibert.launcher import launcher_command
from unibert.training.checkpoint.files import Copies, write
from unibert.training.checkpoint.folder import complete_checkpoints, describe
from unibert.training.checkpoint.retention import RetentionPolicy

TOKENS_PER_STEP = 8 * 64


def steps(run_dir: Path) -> list[int]:
    return [describe(path)["step"] for path in complete_checkpoints(run_dir / "checkpoints")]


# ---- copies ------------------------------------------------------------------------------------------------------


class Scale:
    """A state dict holds objects beside tensors."""

    def __init__(self, value: float) -> None:
        self.value = value


@pytest.mark.parametrize("reserved", [None, 0, 1 << 20])
def test_what_is_written_is_what_was_copied(reserved, tmp_path):
    weight = torch.arange(6.0).view(2, 3)
    state = {
        "tied": {"first": weight, "second": weight.detach()},
        "part": torch.arange(1000)[10:12],
        "empty": [torch.empty(0), torch.empty(0, dtype=torch.int64)],
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "scale": Scale(8.0),
        "steps": [3, None, "three"],
    }
    copies = Copies()
    if reserved is not None:
        copies.reserve(reserved, pinned=False)
    for value in (0.0, 1.0):
        weight.fill_(value)
        state["scale"].value = value
        copies.copy(state, str(tmp_path / f"{value}.pt"))
        files = copies.take()
        weight.fill_(-1)
        state["scale"].value = -1
        digests = write(files).files
        content = torch.load(tmp_path / f"{value}.pt", weights_only=False)
        assert content["tied"]["first"].tolist() == [[value] * 3] * 2
        assert content["tied"]["second"].data_ptr() == content["tied"]["first"].data_ptr()
        assert content["part"].tolist() == [10, 11]
        assert [(t.numel(), t.dtype) for t in content["empty"]] == [(0, torch.float32), (0, torch.int64)]
        assert (tmp_path / f"{value}.pt").stat().st_size < 10_000
        assert content["parameter"].dtype == torch.bfloat16
        assert content["scale"].value == value
        assert content["steps"] == [3, None, "three"]
        assert digests == {f"{value}.pt": file_sha256(tmp_path / f"{value}.pt")}
    # A view's file does not hold the thousand numbers that it looks at two of.
    assert (tmp_path / "0.0.pt").stat().st_size < 8000


def test_copies_say_how_large_they_are():
    copies = Copies()
    assert copies.num_bytes == 0
    copies.copy({"weight": torch.zeros(1000)}, "weight.pt")
    assert 4000 <= copies.num_bytes < 5000
    copies.take()
    assert copies.num_bytes == 0


# ---- what is kept ------------------------------------------------------------------------------------------------


def test_what_a_policy_keeps():
    losses = [5.0, 3.0, 2.0, None, 4.0, 3.5]
    descriptions = []
    for place, loss in enumerate(losses):
        tokens = 100 * (place + 1)
        policy = RetentionPolicy(last=1, every_tokens=250)
        descriptions.append({"heldout_mlm_loss": loss, "milestone": policy.is_milestone(tokens, tokens - 100)})
    # 250 lies before 300, and 500 is itself a multiple.
    assert RetentionPolicy(last=1).superseded(descriptions) == [0, 1, 3]
    assert RetentionPolicy(last=2, best="heldout_mlm_loss").superseded(descriptions) == [0, 1, 3]
    plain = [one | {"milestone": False} for one in descriptions]
    assert RetentionPolicy(last=1).superseded(plain) == [0, 1, 2, 3, 4]
    assert RetentionPolicy(last=3).superseded(plain) == [0, 1, 2]
    assert RetentionPolicy(last=1, best="heldout_mlm_loss").superseded(plain) == [0, 1, 3, 4]
    assert RetentionPolicy(last=9).superseded(plain) == []


def test_the_best_by_an_accuracy_is_the_highest_and_of_equals_the_earliest():
    policy = RetentionPolicy(last=1, best="retrieval_raw")
    measured = [0.25, 0.5, 0.75, 0.75, None, 0.5]
    descriptions = [{"milestone": False} | ({} if one is None else {"retrieval_raw": one}) for one in measured]
    assert policy.superseded(descriptions) == [0, 1, 3, 4]
    # Checkpoints of before the figure was asked for have none.
    assert policy.superseded([{"heldout_mlm_loss": 1.0, "milestone": False}] * 3) == [0, 1]


def test_a_run_keeps_what_its_file_asks_for(run_file, tmp_path, unibert):
    run_dir = tmp_path / "run"
    words = ["pretrain", str(run_file), "--training.checkpoint_every=5", "--training.evaluate_every=5"]
    words += ["--training.keep_checkpoints=1", f"--training.keep_every_tokens={18 * TOKENS_PER_STEP}"]
    # After 30 of 50 steps the adversary goes on alone: the MLM loss rises by 0.3 and more, while sums in another order
    # move it by 0.04.
    words += ["--training.keep_best=true", "--mlm.weight=[[0, 1], [0.6, 1], [0.6, 0], [1, 0]]"]
    words += ["--adversary.max_lambda=1", "--optimizer.learning_rate=0.02", "--optimizer.decay=0"]
    status, output = unibert(*words)
    assert status == 0, output
    losses = {
        line["step"]: line["heldout_mlm_loss"] for line in lines_without_timing(run_dir) if "heldout_mlm_loss" in line
    }
    best = min(losses, key=lambda step: losses[step])
    assert len(losses) == 10
    assert best not in (20, 40, 50)
    assert steps(run_dir) == sorted({20, 40, 50, best})
    description = describe(complete_checkpoints(run_dir / "checkpoints")[0])
    assert description["heldout_mlm_loss"] == losses[description["step"]]
    assert description["tokens"] == description["step"] * TOKENS_PER_STEP


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["--training.keep_every_tokens=0"], "training.keep_every_tokens: must be positive or null, got 0"),
        (
            ["--training.keep_best=true", "--training.evaluate_every=0"],
            "(20) must be a multiple of evaluate_every (0), and both positive",
        ),
        (
            ["--training.keep_best=true", "--training.evaluate_every=15"],
            "(20) must be a multiple of evaluate_every (15)",
        ),
    ],
)
def test_a_policy_that_cannot_be_followed_is_refused(overrides, sentence, run_file, unibert):
    status, output = unibert("pretrain", str(run_file), *overrides)
    assert status == 1
    assert sentence in output


# ---- what is read again --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_checkpoints(module_run_file, tmp_path_factory) -> tuple[list[str], Path]:
    """A finished run on two ranks with checkpoints after steps 20, 40 and 50."""
    words = ["pretrain", str(module_run_file), "--training.ds_config=zero2", "--training.keep_checkpoints=3"]
    run_dir = tmp_path_factory.mktemp("run") / "run"
    status, output = run_to_end(*words, f"--run_dir={run_dir}", ranks=2)
    assert status == 0, output
    assert steps(run_dir) == [20, 40, 50]
    return words, run_dir


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = [
    (flip_a_bit, "zero_pp_rank_1_mp_rank_00_optim_states.pt", "is damaged"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            (cut, "mp_rank_00_model_states.pt", "is damaged"),
            (Path.unlink, "zero_pp_rank_0_mp_rank_00_optim_states.pt", "cannot be read"),
            (flip_a_bit, "checkpoint.json", "is damaged"),
        ]
    ),
]


@pytest.mark.parametrize(("harm", "name", "problem"), DAMAGE)
def test_a_damaged_checkpoint_is_set_aside(harm, name, problem, two_checkpoints, tmp_path, unibert):
    words, undisturbed = two_checkpoints
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    [file] = (run_dir / "checkpoints" / "step-00000050").rglob(name)
    harm(file)
    status, output = unibert(*words, f"--run_dir={run_dir}", ranks=2)
    assert status == 0, output
    assert output.count(f"unibert: {file}: {problem}") == 1
    assert f"continuing from {run_dir / 'checkpoints' / 'step-00000040'}" in output
    assert (run_dir / "checkpoints" / "damaged-step-00000050").is_dir()
    assert steps(run_dir) == [20, 40, 50]
    assert lines_without_timing(run_dir) == lines_without_timing(undisturbed)


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(two_checkpoints, tmp_path, unibert):
    words, undisturbed = two_checkpoints
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    before = (run_dir / "metrics.jsonl").read_text()
    for path in (run_dir / "checkpoints").rglob("mp_rank_00_model_states.pt"):
        flip_a_bit(path)
    for _ in range(2):
        status, output = unibert(*words, f"--run_dir={run_dir}", ranks=2)
        assert status == 1
        assert "unibert: error:" in output
        assert "and no older checkpoint is intact; restore it from a copy, or remove" in output
        assert "Traceback" not in output
    assert steps(run_dir) == [20, 40, 50]
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_a_damaged_checkpoint_is_not_exported(two_checkpoints, tmp_path, unibert):
    run_dir = tmp_path / "run"
    shutil.copytree(two_checkpoints[1], run_dir)
    [file] = (run_dir / "checkpoints" / "step-00000040").rglob("mp_rank_00_model_states.pt")
    flip_a_bit(file)
    status, output = unibert("export", str(run_dir), "--step=40")
    assert status == 1
    assert (
        f"unibert: error: {file}: is damaged, its content differs from the digest; export another with --step" in output
    )
    assert unibert("export", str(run_dir), "--step=20")[0] == 0


# ---- where they cannot be written ------------------------------------------------------------------------------------

mounts = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True).returncode != 0,
    reason="wants `unshare --mount`, which this system refuses",
)


def on_a_disk(folder: Path, mount_options: str, words: list[str]) -> tuple[int, str]:
    """A run on two ranks whose ``folder`` is a disk of its own: status and output."""
    script = f'mount -t tmpfs -o {mount_options} tmpfs "$0" && exec "$@"'
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            str(folder),
            *launcher_command("unibert", words, ranks=2),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout


@mounts
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        # At 16 bytes for each of the model's parameters.
        ("size=1m", "MiB, but 1.0 MiB are free; make room, lower training.keep_checkpoints or choose another"),
        pytest.param("ro", "cannot be written (Read-only file system); choose another", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_cannot_take_the_run_is_refused_before_the_first_step(options, sentence, run_file, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    status, output = on_a_disk(disk, options, ["pretrain", str(run_file), f"--run_dir={disk / 'run'}"])
    assert status == 1
    assert sentence in output
    assert output.count("unibert: error:") == 1
    assert "Traceback" not in output
    assert "step 1/" not in output


@mounts
@pytest.mark.slow
def test_a_disk_that_fills_ends_the_run_before_it_is_full(run_file, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["pretrain", str(run_file), f"--run_dir={disk / 'run'}", "--training.ds_config=zero1"]
    words += ["--training.checkpoint_every=1", "--training.keep_checkpoints=50"]
    status, output = on_a_disk(disk, "size=8m", words)
    assert status == 1
    assert output.count("unibert: error:") == 1
    assert f"{disk}/run/checkpoints/.partial-step-" in output
    assert "MiB are free; make room, lower training.keep_checkpoints" in output
    assert "step 3/" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_write_that_fails_ends_the_run_with_the_older_checkpoint(run_file, tmp_path, unibert):
    run_dir = tmp_path / "run"
    words = ["pretrain", str(run_file), "--training.checkpoint_every=10"]
    assert unibert(*words)[0] == 0
    undisturbed = lines_without_timing(run_dir)
    for path in complete_checkpoints(run_dir / "checkpoints")[1:]:
        shutil.rmtree(path)
    assert steps(run_dir) == [40]
    # A limit on the size of files stands for a full quota; the checkpoint's file has 1.2 MB.
    process = start(words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert output.count("unibert: error:") == 1
    assert "checkpoints/.partial-step-00000050: cannot be written" in output
    assert "the newest complete checkpoint is kept" in output
    assert "Traceback" not in output
    assert steps(run_dir) == [40]
    assert not list((run_dir / "checkpoints").glob(".partial-*"))
    assert unibert(*words)[0] == 0
    assert lines_without_timing(run_dir) == undisturbed


def test_a_run_that_ends_with_an_error_keeps_the_checkpoint_that_it_was_writing(run_file, tmp_path, unibert):
    # The loss overflows within the steps after the rate has become absurd; every step begins a checkpoint.
    words = ["pretrain", str(run_file), "--optimizer.learning_rate=1e30", "--training.checkpoint_every=1"]
    status, output = unibert(*words)
    assert status == 1
    assert "not finite" in output or "not a number" in output
    lines = [line for line in lines_without_timing(tmp_path / "run") if "loss" in line]
    assert steps(tmp_path / "run")[-1] == len(lines)
