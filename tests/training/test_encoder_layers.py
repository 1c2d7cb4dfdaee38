"""Runs with compiled layers and with activation checkpointing."""

import json
import os
import re
import shutil
import signal
import stat
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.refusals import refused
from tests.training.compare import largest_relative_difference, lines_without_timing
from tests.training.conftest import run_to_end, start
from tests.training.processes import fork, rank_process, statuses, wait_for_line
from tests.training.teachers import save_teacher
from unibert.cli import main
from unibert.model.config import ModelConfig

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
ONE_PASS = "--training.micro_batch_size=8"  # 200 steps take a third of the time
COMPILE, CHECKPOINT = "--training.compile=true", "--training.activation_checkpointing"


@pytest.fixture(scope="module")
def objectives(corpus, tmp_path_factory) -> list[str]:
    """Losses that read the teacher's and the student's inner layers, and relations of the last ones.

    A strong adversary makes 200 steps chaotic: from about the hundredth on, they amplify the rounding without bounds.
    """
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 66}
    teacher = save_teacher(tmp_path_factory.mktemp("teacher"), corpus, ModelConfig(config=sizes))
    losses = ["hidden=0.5", "hidden_layers=[[1, 1], [-1, -1]]", "relations=0.5"]
    adversary = ["--adversary.layer=1", "--adversary.max_lambda=0.02"]
    return [*adversary, f"--distillation.teacher={teacher}", *(f"--distillation.{loss}" for loss in losses)]


@pytest.fixture(scope="module")
def uncompiled(module_run_file, objectives, tmp_path_factory) -> Path:
    """200 steps without either."""
    return trained(module_run_file, tmp_path_factory.mktemp("uncompiled") / "run", *objectives, ONE_PASS)


def trained(run_file: Path, run_dir: Path, *words: str, ranks: int = 1, steps: int = 200) -> Path:
    words = (str(run_file), f"--run_dir={run_dir}", f"--training.tokens={steps * 8 * 64}", *words)
    status, output = run_to_end("pretrain", *words, ranks=ranks)
    assert status == 0, output
    return run_dir


@pytest.mark.slow
@needs_compiler
def test_compiled_layers_give_the_losses_of_uncompiled_ones(uncompiled, module_run_file, objectives, tmp_path):
    """The sums within layers have another order, and 200 steps of AdamW may amplify that, as in test_zero.py."""
    compiled = trained(module_run_file, tmp_path / "run", *objectives, ONE_PASS, COMPILE)
    assert largest_relative_difference(uncompiled, compiled) < 1e-4
    weights = [torch.load(state_file(run_dir), weights_only=False)["module"] for run_dir in (uncompiled, compiled)]
    assert list(weights[0]) == list(weights[1])
    models = [load_file(run_dir / "model" / "model.safetensors") for run_dir in (uncompiled, compiled)]
    shapes = [{name: tensor.shape for name, tensor in model.items()} for model in models]
    assert shapes[0] == shapes[1]


def state_file(run_dir: Path) -> Path:
    return next(sorted((run_dir / "checkpoints").glob("step-*"))[-1].rglob("mp_rank_00_model_states.pt"))


@pytest.mark.slow
def test_checkpointing_changes_no_loss(uncompiled, module_run_file, objectives, tmp_path):
    checkpointed = trained(module_run_file, tmp_path / "run", *objectives, ONE_PASS, f"{CHECKPOINT}=selective")
    assert lines_without_timing(checkpointed) == lines_without_timing(uncompiled)


@pytest.mark.slow
@needs_compiler
def test_a_killed_run_with_compiled_layers_loses_nothing(module_run_file, objectives, tmp_path, unibert):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    words = ["pretrain", str(module_run_file), *objectives, "--training.ds_config=zero2", COMPILE, f"{CHECKPOINT}=2"]
    assert unibert(*words, f"--run_dir={undisturbed}", ranks=2)[0] == 0
    process = start([*words, f"--run_dir={killed}"], ranks=2, start_new_session=True)
    wait_for_line(killed / "metrics.jsonl", step=27, timeout=500)
    os.kill(rank_process(process.pid, rank=1), signal.SIGKILL)
    process.communicate(timeout=200)
    assert process.returncode != 0
    assert 27 <= lines_without_timing(killed)[-1]["step"] < 50
    assert unibert(*words, f"--run_dir={killed}", ranks=2)[0] == 0
    assert lines_without_timing(killed) == lines_without_timing(undisturbed)


def train_and_count(words: list[str], report: Path) -> None:
    from torch._dynamo.utils import counters

    main(words)
    report.write_text(json.dumps(counters["stats"]["unique_graphs"]))


@pytest.mark.slow
@needs_compiler
def test_layers_are_compiled_once_for_each_length(corpus, run_file, aligned, tmp_path):
    """The student's first layer, which has no norm before its attention, its second, and the teacher's, which are
    alike, in two lengths; with batches of other documents, and evaluation in between."""
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 66}
    teacher = save_teacher(
        tmp_path / "teacher", corpus, ModelConfig(architecture="bert", config=sizes | {"intermediate_size": 96})
    )
    run = yaml.safe_load(run_file.read_text())
    run["training"] |= {"sequence_length": [[0, 32], [0.5, 64]], "compile": True, "retrieval": str(aligned)}
    run["training"] |= {"tokens": 20 * 8 * 64, "evaluate_every": 5}
    run["distillation"] = {"teacher": str(teacher), "logits": 1.0, "hidden": 1.0}
    run_file.write_text(yaml.safe_dump(run))
    printed, report = tmp_path / "printed.txt", tmp_path / "graphs.json"
    process = fork(printed, train_and_count, ["pretrain", str(run_file)], report)
    assert statuses([process], timeout=900) == [0], printed.read_text()
    assert "2 of the 2 layers of the student and 3 of the 3 layers of the teacher" in printed.read_text()
    assert json.loads(report.read_text()) == 2 * 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([COMPILE, "--training.ds_config=zero3"], "training.compile: ZeRO 3 gathers weights by hooks"),
        (
            [f"{CHECKPOINT}=selective", "--training.ds_config=zero3"],
            "training.activation_checkpointing: ZeRO 3 gathers",
        ),
        ([COMPILE, "--model.attention=flex"], "training.compile: cannot be combined with model.attention flex"),
        ([COMPILE, f"{CHECKPOINT}=selective"], "selective cannot be combined with training.compile"),
        (
            ["--model.attention=flex", f"{CHECKPOINT}=selective"],
            "selective cannot be combined with model.attention flex",
        ),
        (
            [f"{CHECKPOINT}=0"],
            "training.activation_checkpointing: must be positive, selective, or null for none, got 0",
        ),
    ],
)
def test_what_cannot_be_is_refused(words, sentence, run_file, capsys):
    assert sentence in refused(capsys, "pretrain", run_file, *words)[1]


def test_a_missing_compiler_is_refused(run_file, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    message = refused(capsys, "pretrain", run_file, COMPILE)[1]
    assert "training.compile: torch.compile needs a C++ compiler, and CXX=no-such-compiler does not exist" in message


@pytest.mark.slow
@needs_compiler
def test_a_compiler_that_fails_ends_the_run_with_a_sentence(run_file, tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    process = start(["pretrain", str(run_file), COMPILE])
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "rank 0 (" in output
    assert re.search(
        r"torch\.compile failed \(.+\); set training\.compile to false, or install another compiler", output
    )
    assert "Traceback" not in output
