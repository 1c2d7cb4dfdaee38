"""``unibert corpus teach``, and runs that learn from its vectors with no teacher in memory."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from tests.training.checkpoints import damage_later_checkpoints
from tests.training.compare import largest_relative_difference, lines_without_timing
from tests.training.teachers import save_teacher
from unibert.configuration import parse
from unibert.corpus.manifest import Manifest
from unibert.doctor.run_files import check_run
from unibert.model.config import ModelConfig
from unibert.stream import StreamConfig
from unibert.stream.reader import read_blocks
from unibert.stream.source import ShardSource
from unibert.training.config import RunConfig

LENGTH = 64
PIECE = LENGTH - 2
# As in test_zero.py.
FIVE_DIGITS = 1e-5
# Half the distance between neighbours in fp16, relative.
FP16 = 2.0**-11


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, corpus) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher"), corpus, bert(initializer_range=0.1))


def bert(*, initializer_range: float) -> ModelConfig:
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
    sizes["max_position_embeddings"] = LENGTH + 2  # for the prompt
    return ModelConfig(architecture="bert", config=sizes | {"initializer_range": initializer_range})


def command(corpus, teacher, output, *options) -> list[str]:
    words = ["corpus", "teach", str(corpus), "--teacher", str(teacher), "--output", str(output)]
    return [*words, "--sequence_length", str(LENGTH), "--device=cpu", *options]


@pytest.fixture(scope="module")
def taught(tmp_path_factory, corpus, teacher) -> Path:
    output = tmp_path_factory.mktemp("taught") / "corpus"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "unibert", *command(corpus, teacher, output)]
    subprocess.run(words, env=environment, check=True)
    return output


def blocks(corpus: Path, split: str, piece_length: int | None = None):
    manifest, source = Manifest.load(corpus), ShardSource(corpus, StreamConfig())
    shards = [shard for shard in manifest.shards if shard.split == split]
    return [block for shard in shards for block in read_blocks(source, shard, manifest.vocab_size, piece_length)]


@pytest.mark.parametrize("prompt", ["", "w3 w4"])
def test_vectors_are_means_of_each_piece_alone(corpus, taught, teacher, prompt, tmp_path, unibert):
    """As the plain teacher computes them, and sentence-transformers with its prompt."""
    output = taught
    if prompt:
        output = tmp_path / "prompted"
        # The smallest batches: no piece depends on its neighbours.
        words = command(corpus, teacher, output, "--prompt", f"{prompt} ", "--batch_tokens", "1")
        status, printed = unibert(*words)
        assert status == 0, printed
    model, tokenizer = AutoModel.from_pretrained(teacher).eval(), AutoTokenizer.from_pretrained(teacher)
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    count = 0
    for block in blocks(output, "train", PIECE):
        pieces = [
            tokens[start : start + PIECE] for tokens in block.documents() for start in range(0, len(tokens), PIECE)
        ]
        for piece, vector in zip(pieces, torch.from_numpy(block.vectors).float(), strict=True):
            with torch.no_grad():
                ids = torch.tensor([[2, *prompt_ids, *piece.tolist(), 3]])
                mean = model(ids).last_hidden_state[0].mean(dim=0)
            # Beside the rounding to fp16, sums of some dozen fp32 terms of order 1.
            torch.testing.assert_close(vector, mean, rtol=FP16, atol=1e-5)
            count += 1
    assert count > 180  # documents; some have several pieces


def test_documents_stay_as_they_are(corpus, taught):
    assert [block.ids for block in blocks(taught, "train")] == [block.ids for block in blocks(corpus, "train")]
    for before, after in zip(blocks(corpus, "train"), blocks(taught, "train"), strict=True):
        assert np.array_equal(before.tokens, after.tokens)
    old, new = Manifest.load(corpus), Manifest.load(taught)
    assert [shard for shard in old.shards if shard.split == "heldout"] == [
        shard for shard in new.shards if shard.split == "heldout"
    ]
    assert (old.unigram_entropy, old.vocab_size, old.special_ids) == (
        new.unigram_entropy,
        new.vocab_size,
        new.special_ids,
    )
    assert (new.teaching.sequence_length, new.teaching.depth, new.teaching.width) == (LENGTH, 3, 96)
    assert sorted(path.name for path in taught.iterdir()) == ["de", "en", "manifest.json", "ru", "tokenizer"]


def test_verify_and_inspect_know_the_new_corpus(taught, teacher, unibert):
    for name, printed in (("verify", "shards match"), ("inspect", f"96 dimensions from {teacher.name}, for")):
        status, output = unibert("corpus", name, str(taught))
        assert status == 0, output
        assert printed in output


def test_processes_and_mpi_ranks_write_the_same(corpus, taught, teacher, tmp_path, unibert):
    status, output = unibert(*command(corpus, teacher, tmp_path / "pool", "--workers=2"))
    assert status == 0, output
    expected = Manifest.load(taught).fingerprint
    assert Manifest.load(tmp_path / "pool").fingerprint == expected
    if not (find_spec("mpi4py") and shutil.which("mpirun")):
        pytest.skip("the rest needs mpi4py and mpirun")
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
    words = ["mpirun", "-n", "2", sys.executable, "-m", "unibert", *command(corpus, teacher, tmp_path / "mpi")]
    subprocess.run(words, env=os.environ | allowed, check=True)
    assert Manifest.load(tmp_path / "mpi").fingerprint == expected


def test_an_interrupted_command_goes_on(own_corpus, taught, teacher, tmp_path, unibert):
    """A damaged shard ends it; the largest shards come first, so that the others are done by then."""
    manifest, output = Manifest.load(own_corpus), tmp_path / "output"
    smallest = min((shard for shard in manifest.shards if shard.split == "train"), key=lambda shard: shard.tokens)
    content = (own_corpus / smallest.path).read_bytes()
    (own_corpus / smallest.path).write_bytes(content[:700] + b"damage" + content[706:])
    words = command(own_corpus, teacher, output)
    status, printed = unibert(*words)
    assert status == 1
    damage = f"{own_corpus / smallest.path}: 1 damaged blocks; copy the shard again"
    number = len(manifest.shards)
    assert f"teaching: 1 of {number} units failed, which the same command does again: {damage}" in printed
    assert "Traceback" not in printed
    assert not (output / "manifest.json").exists()
    done = {path: path.stat().st_mtime_ns for path in output.glob("*/train-*.tar")}
    assert len(done) == 2
    left = next(iter(done)).with_name(".train-000000.tar.01234567.partial")
    left.write_bytes(b"of a killed process")

    status, printed = unibert(*words, "--prompt=w3")
    assert status == 1
    assert f"output: {output} holds shards of an interrupted run with another prompt; remove the folder" in printed

    (own_corpus / smallest.path).write_bytes(content)
    status, printed = unibert(*words)
    assert status == 0, printed
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert not left.exists()
    assert Manifest.load(output).fingerprint == Manifest.load(taught).fingerprint

    status, printed = unibert(*words)
    assert status == 1
    assert f"output: {output} already holds a corpus; name another folder" in printed


def test_a_missing_shard_is_named_before_the_teacher_reads(own_corpus, teacher, tmp_path, unibert):
    shard = next(shard for shard in Manifest.load(own_corpus).shards if shard.split == "heldout")
    (own_corpus / shard.path).unlink()
    status, printed = unibert(*command(own_corpus, teacher, tmp_path / "output"))
    assert status == 1
    assert f"unibert: error: {own_corpus / shard.path}: missing shard; copy it there" in printed
    assert not (tmp_path / "output").exists()


def test_a_corpus_can_be_taught_again(taught, teacher, tmp_path, unibert):
    """By another teacher or at another length; here by the same, which gives the same corpus."""
    status, printed = unibert(*command(taught, teacher, tmp_path / "again"))
    assert status == 0, printed
    assert Manifest.load(tmp_path / "again").fingerprint == Manifest.load(taught).fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sequence_length=2"], "sequence_length: 2 leaves no room for text between the 2 special tokens"),
        (["--sequence_length=4096"], "teacher: {teacher} has 66 positions, too few for sequences of 4096 tokens"),
        (["--teacher=./nowhere"], "teacher: ./nowhere is not a Hugging Face model folder"),
        (["--output={corpus}"], "output: {corpus} already holds a corpus; name another folder"),
        (["--output={teacher}"], "output: {teacher} exists and is no unfinished run of this command; name another"),
        (["--workers=0"], "workers: must be positive, got 0"),
    ],
)
def test_mistakes(options, message, corpus, teacher, tmp_path, unibert):
    filled = [option.format(corpus=corpus, teacher=teacher) for option in options]
    status, output = unibert(*command(corpus, teacher, tmp_path / "output", *filled))
    assert status != 0
    assert message.format(corpus=corpus, teacher=teacher) in output
    assert "Traceback" not in output
    assert not (tmp_path / "output").exists()


@pytest.fixture
def words(run_file, taught) -> list[str]:
    """A run with pooled alone, which learns from vectors unless a teacher is named."""
    run = yaml.safe_load(run_file.read_text())
    run["training"] |= {"tokens": 20 * 8 * LENGTH, "checkpoint_every": 8}
    run["corpus"] = str(taught)
    run["distillation"] = {"teacher": None, "teacher_input": "clean", "logits": 0, "pooled": 1}
    run_file.write_text(yaml.safe_dump(run))
    return ["pretrain", str(run_file)]


def losses(run: Path, name: str = "distillation_pooled_loss") -> np.ndarray:
    return np.array([line[name] for line in lines_without_timing(run) if name in line])


@pytest.mark.parametrize("projection", ["learned", "pca"])
def test_training_from_vectors_follows_training_with_the_teacher(projection, words, teacher, tmp_path, unibert):
    """PCA of vectors differs from that of tokens, so that the student is fitted, which takes the latter for both."""
    options = [f"--distillation.projection={projection}"]
    if projection == "pca":
        config = '{"hidden_size": 64, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}'
        start = [f"--model.initialize_from={teacher}", "--model.initialize_layers=0,2", "--model.initialize_fit=true"]
        options += [*start, f"--model.config={config}", "--adversary=null"]
    for name, its_teacher in (("vectors", "null"), ("teacher", teacher)):
        run = [*words, *options, f"--run_dir={tmp_path / name}", f"--distillation.teacher={its_teacher}"]
        status, output = unibert(*run)
        assert status == 0, output
        assert ("teacher's attention" in output) == (name == "teacher" or projection == "pca")
    # The rounding of the vectors moves cosines by less than FP16; over 20 steps, weights follow.
    np.testing.assert_allclose(losses(tmp_path / "vectors"), losses(tmp_path / "teacher"), atol=20 * FP16)
    assert losses(tmp_path / "vectors")[0] == pytest.approx(losses(tmp_path / "teacher")[0], abs=FP16)
    assert losses(tmp_path / "vectors")[-1] < losses(tmp_path / "vectors")[0]
    if projection == "pca":
        starts = [load_file(tmp_path / name / "start" / "model.safetensors") for name in ("vectors", "teacher")]
        assert all(torch.equal(starts[0][key], starts[1][key]) for key in starts[0])
    else:
        card = (tmp_path / "vectors" / "model" / "README.md").read_text()
        assert f"distillation of `{teacher.name}`: its mean vectors of documents (weight 1)" in card


def test_two_ranks_follow_one_process(words, tmp_path, unibert):
    """A rank's micro-batches hold different numbers of documents; the plane comes from the vectors."""
    for name, ranks in (("one", 1), ("two", 2)):
        run = [*words, f"--run_dir={tmp_path / name}", f"--training.ds_config=zero{ranks}"]
        status, output = unibert(*run, ranks=ranks)
        assert status == 0, output
    assert largest_relative_difference(tmp_path / "one", tmp_path / "two") < FIVE_DIGITS
    planes = load_file(tmp_path / "one" / "teacher_planes.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in planes.items()} == {"directions": (64, 96), "3.mean": (96,)}
    assert losses(tmp_path / "one")[-1] < losses(tmp_path / "one")[0]


def test_an_interrupted_run_continues_exactly(words, tmp_path, unibert):
    for name in ("whole", "run"):
        status, output = unibert(*words, f"--run_dir={tmp_path / name}", "--stream.num_workers=1")
        assert status == 0, output
    damage_later_checkpoints(tmp_path / "run")
    status, output = unibert(*words, f"--run_dir={tmp_path / 'run'}")
    assert status == 0, output
    assert lines_without_timing(tmp_path / "run") == lines_without_timing(tmp_path / "whole")


def test_sequences_of_other_lengths_between(words, tmp_path, unibert):
    """The loss is the mean over the pieces that the teacher has read, and 0 in steps without any."""
    options = [f"--training.sequence_length=[[0, {LENGTH}], [0.5, 32], [1, 32]]", "--distillation.projection=learned"]
    options += ["--adversary=null", "--mlm.weight=0", "--stream.masking_rate=0", "--training.evaluate_every=0"]
    status, output = unibert(*words, *options)
    assert status == 0, output
    steps = [line for line in lines_without_timing(tmp_path / "run") if "loss" in line]
    assert len(steps) == 30  # 10 of 8 sequences of 64 tokens, 20 of 32 tokens
    name = "distillation_pooled_loss"
    assert all(name in line for line in steps[:10])
    assert 0 < sum(name in line for line in steps[10:]) < 20
    # A mean in fp32, summed over four micro-batches in another order.
    assert [line["loss"] for line in steps] == pytest.approx([line.get(name, 0.0) for line in steps], rel=1e-5)


def test_another_model_than_the_teacher_cannot_start_the_student(words, corpus, tmp_path, unibert):
    other = save_teacher(tmp_path / "other", corpus, bert(initializer_range=0.2))
    config = '{"hidden_size": 64, "num_hidden_layers": 3}'
    start = [f"--model.initialize_from={other}", "--model.initialize_fit=true", f"--model.config={config}"]
    status, output = unibert(*words, *start)
    assert status == 1
    assert f"model.initialize_from: {other} has other weights than " in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--distillation.hidden=1"], "distillation.hidden: needs distillation.teacher; name one, or set this"),
        (["--distillation.teacher_prompt=w3"], "distillation.teacher_prompt: there is no distillation.teacher to"),
        (["--training.sequence_length=32"], "training.sequence_length: 32, but the teacher of "),
        (["--corpus={corpus}"], "distillation.teacher: null takes the teacher's vectors from the corpus, but {corpus}"),
    ],
)
def test_runs_that_vectors_cannot_teach(options, message, words, corpus, unibert):
    status, output = unibert(*words, *(option.format(corpus=corpus) for option in options))
    assert status != 0
    assert message.format(corpus=corpus) in output
    assert "Traceback" not in output


def test_plan_and_doctor_know_such_runs(words, tmp_path, unibert):
    *_, models = check_run(parse(RunConfig, ["--config", words[1]]))
    assert models.mark == "ok"
    assert "teacher's vectors; built and loaded as the run will" in models.message
    figures = tmp_path / "plan.json"
    status, output = unibert("plan", *words[1:], "--gpus=1", "--gpu=h100", f"--output={figures}")
    assert status == 0, output
    assert json.loads(figures.read_text())["teacher_parameters"] == 0
