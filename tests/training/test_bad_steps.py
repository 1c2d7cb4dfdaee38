"""Steps whose loss or gradient is not finite: left out, counted and named, on all ranks and after a resume."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.training.checkpoints import damage_later_checkpoints
from tests.training.compare import largest_relative_difference, lines_without_timing
from tests.training.conftest import VOCAB_SIZE
from tests.training.teachers import save_teacher
from unibert.corpus.manifest import Manifest
from unibert.corpus.shards import ShardWriter
from unibert.model.config import ModelConfig
from unibert.stream import StreamConfig
from unibert.stream.reader import read_blocks
from unibert.stream.source import ShardSource
from unibert.training.engine import DS_CONFIGS
from unibert.training.metrics_file import read_metrics

LENGTH = 64
SPOILT = "en/train-000000.tar#train12"
RARE = VOCAB_SIZE - 1
"""A token that no document has, and whose embedding in the teacher is NaN."""
# As in test_zero.py.
FIVE_DIGITS = 1e-5


def with_rare_token(corpus: Path, output: Path, *, spoilt: str) -> Path:
    """A copy of a corpus in which the document ``spoilt``, or each of the train documents, begins with the token."""
    shutil.copytree(corpus, output)
    manifest, shards = Manifest.load(corpus), []
    for shard in manifest.shards:
        if shard.split == "train":
            (block,) = read_blocks(ShardSource(corpus, StreamConfig()), shard, manifest.vocab_size)
            with ShardWriter(output, shard.language, "train", vocab_size=VOCAB_SIZE) as writer:
                for name, tokens in zip(block.ids, block.documents(), strict=True):
                    begins = spoilt in ("all", f"{shard.path}#{name}")
                    writer.write(name, np.append(RARE, tokens[1:]) if begins else tokens, 3 * len(tokens))
            shard = writer.shard
        shards.append(shard)
    replace(manifest, shards=tuple(shards)).save(output)
    return output


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, corpus) -> Path:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    folder = save_teacher(tmp_path_factory.mktemp("teacher"), corpus, ModelConfig(config=sizes))
    weights = load_file(folder / "model.safetensors")
    weights["model.embeddings.tok_embeddings.weight"][RARE] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def spoilt_corpus(corpus, tmp_path_factory) -> Path:
    return with_rare_token(corpus, tmp_path_factory.mktemp("spoilt") / "corpus", spoilt=SPOILT)


def words(run_file: Path, corpus: Path, teacher: Path, **training: object) -> list[str]:
    run = yaml.safe_load(run_file.read_text())
    run["training"] |= {"evaluate_every": 0, "checkpoint_every": 25, **training}
    run["corpus"] = str(corpus)
    run["distillation"] = {"teacher": str(teacher), "teacher_input": "clean", "logits": 0, "hidden": 1}
    run_file.write_text(yaml.safe_dump(run))
    return ["pretrain", str(run_file)]


@pytest.fixture(scope="module")
def one_process(module_run_file, spoilt_corpus, teacher, tmp_path_factory) -> Path:
    from tests.training.conftest import run_to_end

    run_dir = tmp_path_factory.mktemp("one") / "run"
    status, output = run_to_end(*words(module_run_file, spoilt_corpus, teacher), f"--run_dir={run_dir}")
    assert status == 0, output
    left_out = read_metrics(run_dir / "metrics.jsonl").left_out
    for line in left_out:
        assert f"unibert: step {line['step']} is left out: the loss is not finite in the batch of rank 0: " in output
    return run_dir


def test_a_bad_step_is_left_out_counted_and_named(one_process):
    metrics = read_metrics(one_process / "metrics.jsonl")
    assert 2 <= len(metrics.left_out) <= 6  # once in each epoch
    for line in metrics.left_out:
        assert (line["left_out"], SPOILT in line["origins"]["0"]) == ("loss", True)
        assert line["tokens"] == line["step"] * 8 * LENGTH
    bad = {line["step"] for line in metrics.left_out}
    assert [line["step"] for line in metrics.training] == [step for step in range(1, 51) if step not in bad]
    assert metrics.training[-1]["left_out_steps"] == {"loss": len(bad)}
    assert all(np.isfinite(line["loss"]) for line in metrics.training)
    for name, tensor in load_file(one_process / "model" / "model.safetensors").items():
        assert tensor.isfinite().all(), name


def test_a_bad_step_changes_no_weight(one_process, module_run_file, tmp_path, unibert):
    """A run that ends with a bad step has the model of the run that ends before it."""
    first = read_metrics(one_process / "metrics.jsonl").left_out[0]["step"]
    for name, steps in (("before", first - 1), ("after", first)):
        options = [f"--training.tokens={steps * 8 * LENGTH}", "--optimizer.warmup=0", "--optimizer.decay=0"]
        fixed = ["--adversary=null", "--stream.masking_rate=0.3", f"--run_dir={tmp_path / name}"]
        status, output = unibert("pretrain", str(module_run_file), *options, *fixed)
        assert status == 0, output
    before, after = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.equal(after[name]), name


@pytest.mark.parametrize(
    "ds_config",
    ["zero0", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero2", "zero3"))],
)
def test_all_ranks_leave_out_the_same_steps(ds_config, one_process, module_run_file, tmp_path, unibert):
    run_dir = tmp_path / "run"
    status, output = unibert(
        "pretrain", str(module_run_file), f"--run_dir={run_dir}", f"--training.ds_config={ds_config}", ranks=2
    )
    assert status == 0, output
    alone, both = (read_metrics(folder / "metrics.jsonl").left_out for folder in (one_process, run_dir))
    assert [line["step"] for line in both] == [line["step"] for line in alone]
    for line in both:
        # the other rank's losses were finite
        assert [SPOILT in names for names in line["origins"].values()] == [True]
    assert largest_relative_difference(one_process, run_dir, leave_out=["origins"]) < FIVE_DIGITS


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bf16_leaves_them_out_too(stage, one_process, module_run_file, tmp_path, unibert):
    config = json.loads((DS_CONFIGS / f"zero{stage}.json").read_text()) | {"bf16": {"enabled": True}}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    run_dir = tmp_path / "run"
    # With fewer log lines, such a step is found only when the next one has been made.
    options = [f"--training.ds_config={tmp_path / 'ds.json'}", "--training.log_every=10"]
    status, output = unibert("pretrain", str(module_run_file), f"--run_dir={run_dir}", *options)
    assert status == 0, output
    metrics = read_metrics(run_dir / "metrics.jsonl")
    alone = read_metrics(one_process / "metrics.jsonl")
    assert [line["step"] for line in metrics.left_out] == [line["step"] for line in alone.left_out]
    # bf16 has 8 significant bits.
    assert metrics.training[-1]["loss"] == pytest.approx(alone.training[-1]["loss"], rel=2**-8)


def test_a_resumed_run_leaves_out_and_counts_the_same(one_process, module_run_file, tmp_path, unibert):
    """From the checkpoint of step 25, by which a step was left out."""
    run_dir = Path(shutil.copytree(one_process, tmp_path / "run"))
    damage_later_checkpoints(run_dir)
    assert read_metrics(run_dir / "metrics.jsonl").left_out[0]["step"] < 25
    status, output = unibert("pretrain", str(module_run_file), f"--run_dir={run_dir}")
    assert status == 0, output
    assert lines_without_timing(run_dir) == lines_without_timing(one_process)


def test_bad_steps_in_a_row_end_the_run(corpus, teacher, run_file, tmp_path, unibert):
    bad = with_rare_token(corpus, tmp_path / "corpus", spoilt="all")
    status, output = unibert(*words(run_file, bad, teacher, max_bad_steps=4, checkpoint_every=1))
    assert status == 1
    assert "unibert: error: step 4: the loss is not finite in the batch of rank 0: " in output
    assert (
        "it is bad step 4 in a row (training.max_bad_steps), so the run ends; the newest checkpoint is kept" in output
    )
    assert "Traceback" not in output
    run_dir = run_file.parent / "run"
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl").left_out] == [1, 2, 3]
    assert not list((run_dir / "checkpoints").glob("step-*"))  # weights among bad steps may be spoilt
    status, output = unibert("pretrain", str(run_file), "--training.max_bad_steps=6")
    assert status == 1
    assert "step 6: the loss is not finite" in output


def test_fp16_tells_of_steps_that_the_loss_scale_spoilt(run_file, unibert):
    config = json.loads((DS_CONFIGS / "zero1_fp16.json").read_text())
    config["fp16"] |= {"enabled": True, "initial_scale_power": 32}
    (run_file.parent / "ds.json").write_text(json.dumps(config))
    status, output = unibert("pretrain", str(run_file), f"--training.ds_config={run_file.parent / 'ds.json'}")
    if "does not support it" in output:
        pytest.skip("this CPU does not train in fp16")
    assert status == 0, output
    metrics = read_metrics(run_file.parent / "run" / "metrics.jsonl")
    assert {line["left_out"] for line in metrics.left_out} == {"loss_scale"}
    assert metrics.training[-1]["left_out_steps"] == {"loss_scale": len(metrics.left_out)}
    assert "is left out: the gradient overflowed fp16 and DeepSpeed lowers the loss scale" in output
