"""A student narrower than its teacher: the PCA is the run's own, the same for all ranks and after a restart."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.checkpoints import damage_later_checkpoints
from tests.training.compare import largest_relative_difference, lines_without_timing
from tests.training.teachers import save_teacher
from unibert.model.config import ModelConfig

# As in test_zero.py.
FIVE_DIGITS = 1e-5
PLANES = "teacher_planes.safetensors"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, corpus) -> Path:
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96}
    return save_teacher(tmp_path_factory.mktemp("teacher"), corpus, ModelConfig(config=sizes))


@pytest.fixture
def words(run_file, teacher) -> list[str]:
    options = {"teacher": teacher, "logits": 0, "hidden": 1, "hidden_layers": "[[1, 2], [-1, -1]]"}
    options |= {"pooled": "[[0, 2], [1, 0.5]]"}
    return ["pretrain", str(run_file), *(f"--distillation.{key}={value}" for key, value in options.items())]


def test_two_ranks_follow_one_process(words, tmp_path, unibert):
    for name, ranks in (("one", 1), ("two", 2)):
        status, output = unibert(*words, f"--run_dir={tmp_path / name}", ranks=ranks)
        assert status == 0, output
    assert largest_relative_difference(tmp_path / "one", tmp_path / "two") < FIVE_DIGITS
    steps = [line for line in lines_without_timing(tmp_path / "one") if "loss" in line]
    for loss in ("distillation_hidden_loss", "distillation_pooled_loss"):
        assert steps[-1][loss] < steps[0][loss]
    planes = load_file(tmp_path / "one" / PLANES)
    assert {name: tuple(tensor.shape) for name, tensor in planes.items()} == {
        "directions": (64, 96),
        "2.mean": (96,),
        "3.mean": (96,),
    }
    # Products of 96 fp32 terms.
    torch.testing.assert_close(planes["directions"] @ planes["directions"].T, torch.eye(64), atol=1e-5, rtol=0)


def test_an_interrupted_run_continues_with_the_same_planes(words, tmp_path, unibert):
    unibert(*words, f"--run_dir={tmp_path / 'whole'}")
    unibert(*words, f"--run_dir={tmp_path / 'run'}")
    damage_later_checkpoints(tmp_path / "run")
    status, output = unibert(*words, f"--run_dir={tmp_path / 'run'}")
    assert status == 0, output
    assert lines_without_timing(tmp_path / "run") == lines_without_timing(tmp_path / "whole")


def test_damaged_planes_are_named(words, tmp_path, unibert):
    unibert(*words)
    (tmp_path / "run" / PLANES).write_bytes(b"damaged")
    status, output = unibert(*words)
    assert status == 1
    assert f"unibert: error: {tmp_path}/run/{PLANES}: is damaged" in output
    assert "Traceback" not in output


def test_planes_of_a_start_without_a_checkpoint_are_replaced(words, tmp_path, unibert):
    """They may be those of another teacher."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / PLANES).write_bytes(b"of another teacher")
    status, output = unibert(*words, "--training.tokens=1024")
    assert status == 0, output
    assert load_file(tmp_path / "run" / PLANES)["3.mean"].shape == (96,)


def test_a_learned_projection_is_exported(words, tmp_path, unibert):
    """ZeRO 3 shards the projections too."""
    options = ["--distillation.projection=learned", "--training.tokens=1024", "--training.ds_config=zero3"]
    status, output = unibert(*words, *options, ranks=2)
    assert status == 0, output
    model = tmp_path / "run" / "model"
    tensors = load_file(model / "2_Dense" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "linear.weight": (96, 64),
        "linear.bias": (96,),
    }
    modules = json.loads((model / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", "Dense"]
    assert "A linear layer maps this mean to the 96 dimensions of the teacher" in (model / "README.md").read_text()
    # Means of languages are those of the vectors behind it.
    status, output = unibert("export", str(tmp_path / "run"), "--center")
    assert status == 0, output
    assert {tuple(mean.shape) for mean in load_file(model / "language_means.safetensors").values()} == {(96,)}
