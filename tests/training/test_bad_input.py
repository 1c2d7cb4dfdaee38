"""What users get wrong ends with exit status 1 and one sentence that says how to fix it."""

import json
import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch

from tests.refusals import refused


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """A start in this process puts its rank into the environment, where the ranks of later tests would find it."""
    with patch.dict(os.environ):
        yield


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("--stream.lane=8", "--stream.lane: unknown key 'stream.lane'; did you mean 'stream.lanes'?"),
        ("--adversary.max_lamda=1", "unknown key 'adversary.max_lamda'; did you mean 'adversary.max_lambda'?"),
        ("--sead=1", "unknown key 'sead'; did you mean 'seed'?"),
        ("--training.tokens=many", "training.tokens: must be a whole number, got 'many'"),
        ("--training.global_batch_size=6", "training.global_batch_size: 6 is not a multiple of stream.lanes (4)"),
        ("--optimizer.warmup=0.95", "optimizer.warmup: warmup 0.95 and decay 0.1 are shares of the run"),
        ("--training.sequence_length=[[0.5, 64]]", "the first point must be at progress 0"),
        ("--adversary.level=sentence", "adversary.level: must be mean, cls or token, got 'sentence'"),
        ("--mlm.workspace_gib=0", "mlm.workspace_gib: must be positive, got 0"),
    ],
)
def test_overrides(run_file, capsys, override, sentence):
    assert sentence in refused(capsys, "pretrain", run_file, override)[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="these paths serve a GPU")
@pytest.mark.parametrize(("key", "path"), [("mlm", "exp-store"), ("mlm", "recompute"), ("adversary", "fused")])
def test_a_kernel_path_that_the_device_cannot_take(run_file, capsys, key, path):
    sentence = f"{key}.path: {path} needs CUDA tensors, these are on cpu; take chunked"
    assert sentence in refused(capsys, "pretrain", run_file, f"--{key}.path={path}")[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="these paths serve a GPU")
def test_an_attention_path_that_the_device_cannot_take(run_file, capsys):
    sentence = "model.attention: flex has no backward pass on cpu; take sdpa"
    assert sentence in refused(capsys, "pretrain", run_file, "--model.attention=flex")[1]


def test_keys_of_the_file(run_file, tmp_path, capsys):
    text = run_file.read_text()
    run_file.write_text(text.replace("log_every", "log_evry"))
    sentence = f"{run_file}: unknown key 'training.log_evry'; did you mean 'training.log_every'?"
    assert sentence in refused(capsys, "pretrain", run_file)[1]
    run_file.write_text("- a\n- list\n")
    assert "must contain keys and values" in refused(capsys, "pretrain", run_file)[1]
    run_file.write_text("seed: [1\n")
    assert "is not valid YAML" in refused(capsys, "pretrain", run_file)[1]


def test_a_run_file_that_is_not_there(capsys):
    assert (
        "no such run file, and no preset of that name; presets are base, demo"
        in refused(capsys, "pretrain", "nowhere.yaml")[1]
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"train_batch_size": 8}', "sets 'train_batch_size', which the run file sets as training.global_batch_size"),
        ('{"gradient_clipping": 1.0}', "which the run file sets as optimizer.max_grad_norm; remove it here"),
        ('{"zero_optimisation": {"stage": 1}}', "unknown key 'zero_optimisation'; did you mean 'zero_optimization'?"),
        ("{", "is not valid JSON"),
    ],
)
def test_ds_configs(run_file, tmp_path, unibert, content, sentence):
    path = tmp_path / "mine.json"
    path.write_text(content)
    status, output = unibert("pretrain", str(run_file), f"--training.ds_config={path}")
    assert status == 1
    assert sentence in output
    assert "Traceback" not in output


def test_a_ds_config_that_is_not_there(run_file, unibert):
    status, output = unibert("pretrain", str(run_file), "--training.ds_config=zero7")
    assert status == 1
    assert "training.ds_config: zero7 is neither a file nor one of zero0, zero1, zero1_fp16, zero1_offload" in output


def test_a_missing_shard(run_file, own_corpus, unibert):
    shard = own_corpus / "en" / "train-000000.tar"
    shard.unlink()
    status, output = unibert("pretrain", str(run_file), f"--corpus={own_corpus}")
    assert status == 1
    assert f"{shard}: missing shard; copy it there or build the corpus again" in output
    assert "Traceback" not in output


def test_a_shard_of_another_digest(run_file, own_corpus, unibert):
    shard = own_corpus / "en" / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[-600] ^= 1  # in the padding at the end, which the tar reader would never look at
    shard.write_bytes(content)
    for words in (
        ["pretrain", str(run_file), f"--corpus={own_corpus}", "--stream.max_damaged_share=0"],
        ["corpus", "verify", str(own_corpus)],
    ):
        status, output = unibert(*words)
        assert status == 1
        assert f"{shard}: content differs from the manifest's digest; copy it again" in output
        assert "Traceback" not in output


def test_no_corpus(run_file, tmp_path, unibert):
    status, output = unibert("pretrain", str(run_file), f"--corpus={tmp_path / 'none'}")
    assert status == 1
    assert str(tmp_path / "none") in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_ranks_that_do_not_divide_the_lanes(run_file, unibert):
    status, output = unibert("pretrain", str(run_file), ranks=3)
    assert status != 0
    assert "stream.lanes: 4 lanes cannot be divided among 3 ranks; use 1, 2, 4 ranks" in output


@pytest.mark.slow
def test_a_corpus_that_has_changed(run_file, own_corpus, unibert):
    words = ["pretrain", str(run_file), f"--corpus={own_corpus}", "--training.tokens=1024"]
    assert unibert(*words)[0] == 0
    metrics = run_file.parent / "run" / "metrics.jsonl"
    before = metrics.read_text() + '{"step": 3, "loss": 1.0}\n'
    metrics.write_text(before)
    manifest = json.loads((own_corpus / "manifest.json").read_text())
    manifest["tokenizer_sha256"] = "1" * 64
    (own_corpus / "manifest.json").write_text(json.dumps(manifest))
    status, output = unibert(*words)
    assert status == 1
    assert "is not the corpus that" in output
    assert metrics.read_text() == before


def test_a_loss_that_is_not_finite_names_step_and_documents_and_keeps_the_checkpoint(run_file, tmp_path, unibert):
    # Far too high a rate: the weights overflow fp32 within a few steps.
    status, output = unibert(
        "pretrain",
        str(run_file),
        "--optimizer.learning_rate=1e30",
        "--optimizer.warmup=0",
        "--optimizer.max_grad_norm=1e30",
        "--training.checkpoint_every=1",
    )
    assert status == 1
    assert "not finite in the batch of rank 0: " in output or "the gradient is infinite or not a number" in output
    assert "Traceback" not in output
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_a_teacher_of_another_vocabulary(run_file, tmp_path, unibert):
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    ModernBertForMaskedLM(ModernBertConfig(vocab_size=77, **sizes, **ids)).save_pretrained(tmp_path / "teacher")
    status, output = unibert("pretrain", str(run_file), f"--distillation.teacher={tmp_path / 'teacher'}")
    assert status == 1
    assert "distillation.teacher" in output
    assert "Traceback" not in output
