"""A run whose student starts from its teacher's layers, narrowed and fitted before the first step."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from tests.training.checkpoints import damage_later_checkpoints
from tests.training.compare import largest_relative_difference, lines_without_timing
from tests.training.conftest import VOCAB_SIZE
from tests.training.teachers import save_teacher
from unibert.model.config import ModelConfig

# As in test_zero.py.
FIVE_DIGITS = 1e-5
TENSORS = "model.safetensors"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, corpus) -> Path:
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
    config = ModelConfig(architecture="bert", config=sizes | {"initializer_range": 0.1})
    return save_teacher(tmp_path_factory.mktemp("teacher"), corpus, config)


@pytest.fixture
def words(run_file, teacher) -> list[str]:
    run = yaml.safe_load(run_file.read_text())
    run["training"]["tokens"] = 20 * 8 * 64
    run["training"]["checkpoint_every"] = 8
    run["model"] = {
        "initialize_from": str(teacher),
        "initialize_layers": [0, 2],
        "initialize_fit": True,
        "config": {"hidden_size": 64, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0},
    }
    run["distillation"] = {"teacher": str(teacher), "logits": 0, "hidden": 1, "teacher_input": "clean"}
    run_file.write_text(yaml.safe_dump(run))
    return ["pretrain", str(run_file)]


@pytest.mark.parametrize("stage", [0, 3])
def test_two_ranks_start_from_the_same_student(stage, words, tmp_path, unibert):
    """Rank 0 alone fits; the others get its weights when DeepSpeed builds the engine."""
    for name, ranks in (("one", 1), ("two", 2)):
        status, output = unibert(
            *words, f"--run_dir={tmp_path / name}", f"--training.ds_config=zero{stage}", ranks=ranks
        )
        assert status == 0, output
    assert largest_relative_difference(tmp_path / "one", tmp_path / "two") < FIVE_DIGITS
    starts = [load_file(tmp_path / name / "start" / TENSORS) for name in ("one", "two")]
    assert all(torch.equal(starts[0][key], starts[1][key]) for key in starts[0])


def test_the_start_is_a_model_and_better_than_a_fresh_one(words, tmp_path, unibert):
    status, output = unibert(*words)
    assert status == 0, output
    start = tmp_path / "run" / "start"
    model = AutoModelForMaskedLM.from_pretrained(start)
    assert (model.config.hidden_size, model.config.num_attention_heads) == (64, 2)
    assert len(AutoTokenizer.from_pretrained(start)) == VOCAB_SIZE
    card = (start / "README.md").read_text()
    assert "fitted in closed form" in card
    assert "0 tokens, padding included, in 0 steps" in card
    steps = [line for line in lines_without_timing(tmp_path / "run") if "loss" in line]
    # 1 - cosine; two directions of 64 dimensions that have nothing in common give 1.
    assert steps[0]["distillation_hidden_loss"] < 0.4


def test_an_interrupted_run_continues_without_another_fit(words, tmp_path, unibert):
    unibert(*words, f"--run_dir={tmp_path / 'whole'}")
    unibert(*words, f"--run_dir={tmp_path / 'run'}")
    damage_later_checkpoints(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "start")
    status, output = unibert(*words, f"--run_dir={tmp_path / 'run'}")
    assert status == 0, output
    assert lines_without_timing(tmp_path / "run") == lines_without_timing(tmp_path / "whole")
    assert not (tmp_path / "run" / "start").exists()


@pytest.fixture
def aligned(tmp_path) -> Path:
    """Two made-up languages, in which token i of one means token i + 90 of the other."""
    folder = tmp_path / "aligned"
    folder.mkdir()
    sentences = [[(3 * line + place) % 90 for place in range(6)] for line in range(12)]
    for code, offset in (("de", 0), ("en", 90)):
        lines = [" ".join(f"w{offset + token}" for token in sentence) for sentence in sentences]
        (folder / f"{code}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_the_report_shows_retrieval_from_the_start_to_the_end(words, aligned, tmp_path, unibert):
    run = tmp_path / "run"
    unibert(*words, "--training.keep_checkpoints=3")
    report = ["report", str(run), "--retrieval", str(aligned)]
    status, output = unibert(*report)
    assert status == 0, output
    scores = run / "evaluation" / "retrieval_over_run.json"
    points = json.loads(scores.read_text())["points"]
    assert [point["step"] for point in points] == [0, 8, 16, 20]
    assert [point["tokens"] for point in points] == [0, 8 * 512, 16 * 512, 20 * 512]
    assert all(0 <= point[kind] <= 1 for point in points for kind in ("raw", "centred"))
    assert "Retrieval at the checkpoints" in (run / "report" / "index.html").read_text()
    # The last checkpoint is the model, and its score that of `unibert evaluate`.
    status, output = unibert("evaluate", str(run / "model"), "--retrieval", str(aligned), "--layers=-1")
    assert status == 0, output
    [mean] = json.loads((run / "evaluation" / "scores.json").read_text())["model"]["retrieval_mean"].values()
    assert {kind: points[-1][kind] for kind in mean} == mean
    # Scores of deleted checkpoints stay; those of other text do not.
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    unibert(*report)
    assert json.loads(scores.read_text())["points"] == points
    unibert(*report, "--max_sentences=6")
    assert [point["step"] for point in json.loads(scores.read_text())["points"]] == [0, 16, 20]


def test_without_masks_distillation_alone_trains(words, tmp_path, unibert):
    """No token is masked in any step, yet every stage gets the head's gradients, which are zero."""
    options = ["--stream.masking_rate=0", "--mlm.weight=0"]
    for name, ranks in (("one", 1), ("two", 2)):
        run = [*words, *options, f"--run_dir={tmp_path / name}", f"--training.ds_config=zero{2 * (ranks - 1)}"]
        status, output = unibert(*run, ranks=ranks)
        assert status == 0, output
    assert largest_relative_difference(tmp_path / "one", tmp_path / "two") < FIVE_DIGITS
    lines = lines_without_timing(tmp_path / "one")
    assert not any({"mlm_loss", "heldout_mlm_loss"} & line.keys() for line in lines)
    steps = [line for line in lines if "loss" in line]
    assert steps[-1]["distillation_hidden_loss"] < steps[0]["distillation_hidden_loss"]


def test_a_loss_over_masks_needs_masks(words, unibert):
    status, output = unibert(*words, "--stream.masking_rate=0")
    assert status != 0
    assert "stream.masking_rate: with 0 there is nothing to predict, but mlm.weight is 1.0; set it to 0" in output
    assert "Traceback" not in output


def test_the_best_checkpoint_needs_a_masked_lm_head_that_is_trained(words, unibert):
    options = ["--mlm.weight=0", "--training.keep_best=true", "--training.checkpoint_every=20"]
    status, output = unibert(*words, *options)
    assert status != 0
    assert "training.keep_best: judges by the held-out MLM loss, but no loss trains predictions" in output


def test_layers_of_another_model_than_the_teacher_are_refused(words, tmp_path, teacher, unibert):
    status, output = unibert(*words, f"--model.initialize_from={tmp_path}")
    assert status != 0
    assert f"model.initialize_fit: fits the layers of distillation.teacher, which is {teacher}" in output
    assert "Traceback" not in output


def test_a_run_without_a_teacher_starts_from_the_same_student(words, tmp_path, unibert):
    few = ["--training.tokens=1024", "--training.evaluate_every=0"]
    for name, options in (("taught", []), ("plain", ["--distillation=null"])):
        status, output = unibert(*words, *few, *options, f"--run_dir={tmp_path / name}")
        assert status == 0, output
    taught, plain = (load_file(tmp_path / name / "start" / TENSORS) for name in ("taught", "plain"))
    assert taught.keys() == plain.keys()
    assert all(torch.equal(taught[key], plain[key]) for key in taught)
    trained = load_file(tmp_path / "plain" / "model" / TENSORS)
    assert any(not torch.equal(trained[key], plain[key]) for key in plain)
