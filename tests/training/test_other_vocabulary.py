"""A run on a trimmed corpus, with a teacher and a first model of the whole vocabulary."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
)

from tests.corpus import fast_tokenizers
from tests.training.checkpoints import damage_later_checkpoints
from tests.training.compare import lines_without_timing
from unibert.cli import main
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig
from unibert.corpus.manifest import Manifest
from unibert.corpus.pretrained_tokenizer import Origin
from unibert.demo import alignment

VOCAB_SIZE = 3000
CODES = ("de", "en", "ru")
RUNS = ("run", "two")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A BERT with more rows than its tokenizer has pieces, as multilingual-e5 has."""
    folder = tmp_path_factory.mktemp("teacher")
    aligned = alignment.aligned_sentences()
    fast_tokenizers.train("unigram", [line for code in CODES for line in aligned[code]], VOCAB_SIZE, folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertForMaskedLM(BertConfig(vocab_size=VOCAB_SIZE + 35, pad_token_id=1, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(teacher, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trimmed") / "corpus"
    settings = {"heldout_share": 0.2, "tokens_per_shard": 2000, "workers": 1, "languages": list(CODES)}
    build_corpus(
        CorpusConfig(
            inputs=[str(alignment.WIKI)], output=str(folder), tokenizer=str(teacher), trim_vocabulary=1200, **settings
        )
    )
    return folder


@pytest.fixture
def run_file(corpus, teacher, tmp_path) -> Path:
    run = {
        "run_dir": str(tmp_path / "run"),
        "corpus": str(corpus),
        "training": {
            "tokens": 12 * 8 * 64,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "sequence_length": 64,
            "log_every": 1,
            "checkpoint_every": 4,
            "ds_config": "zero0",
        },
        "stream": {"lanes": 4, "window_shards": 2},
        "model": {"initialize_from": str(teacher), "initialize_layers": [0, 3]},
        "distillation": {"teacher": str(teacher), "hidden": 1.0, "relations": 1.0, "logits": 1.0},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def test_two_ranks_follow_one_process_and_the_export_is_plain(run_file, corpus, teacher, tmp_path, unibert):
    status, output = unibert("pretrain", str(run_file))
    assert status == 0, output
    status, output = unibert("pretrain", str(run_file), f"--run_dir={tmp_path / 'two'}", ranks=2)
    assert status == 0, output
    # Sums in another order agree to at least five digits, as for every run.
    one, two = ([line["loss"] for line in lines_without_timing(tmp_path / run) if "loss" in line] for run in RUNS)
    assert len(one) == 12
    assert two == pytest.approx(one, rel=1e-5)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    special = Manifest.load(corpus).special_ids
    assert model.config.vocab_size == len(tokenizer) == Manifest.load(corpus).vocab_size
    assert (model.config.pad_token_id, tokenizer.pad_token_id) == (special.pad, special.pad)
    assert tokenizer.model_max_length == 512
    filled = model(**tokenizer("Der <mask> ist kalt.", return_tensors="pt")).logits
    assert filled.shape[-1] == model.config.vocab_size


@pytest.mark.parametrize("pooler", [True, False])
def test_trim_keeps_the_parts_that_a_model_without_a_head_has(pooler, corpus, teacher, tmp_path):
    """Many models of sentence vectors have no pooler; a random one is none of theirs."""
    model = BertModel.from_pretrained(teacher, add_pooling_layer=pooler)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(teacher).save_pretrained(tmp_path / "model")
    main(["trim", str(tmp_path / "model"), f"--corpus={corpus}", f"--output={tmp_path / 'trimmed'}"])
    whole, trimmed = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "trimmed"))
    assert whole.keys() == trimmed.keys()
    assert all(torch.equal(whole[name], trimmed[name]) for name in whole if "word_embeddings" not in name)


def test_an_interrupted_run_continues(run_file, tmp_path, unibert):
    unibert("pretrain", str(run_file), "--run_dir", str(tmp_path / "whole"))
    unibert("pretrain", str(run_file))
    damage_later_checkpoints(tmp_path / "run")
    status, output = unibert("pretrain", str(run_file))
    assert status == 0, output
    assert lines_without_timing(tmp_path / "run") == lines_without_timing(tmp_path / "whole")


def test_the_first_step_starts_from_the_teachers_rows(run_file, corpus, teacher, tmp_path, unibert):
    status, output = unibert("pretrain", str(run_file), "--optimizer.learning_rate=1e-30", "--training.tokens=512")
    assert status == 0, output
    origin = Origin.load(corpus / "tokenizer")
    assert origin is not None
    assert origin.source_ids is not None
    rows = AutoModelForMaskedLM.from_pretrained(teacher).get_input_embeddings().weight
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model").get_input_embeddings().weight
    # A step at that rate moves no weight by more than 1e-29.
    torch.testing.assert_close(student, rows[torch.from_numpy(origin.source_ids)], rtol=0, atol=1e-29)
    assert not np.array_equal(origin.source_ids, np.arange(len(origin.source_ids)))


def other_tokenizer(folder: Path, source: Path) -> None:
    fast_tokenizers.train("unigram", alignment.aligned_sentences()["de"], 600, folder)
    AutoModelForMaskedLM.from_pretrained(source).save_pretrained(folder)


def few_positions(folder: Path, source: Path) -> None:
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    config = BertConfig.from_pretrained(source)
    config.max_position_embeddings = 32
    BertForMaskedLM(config).save_pretrained(folder)


def few_rows(folder: Path, source: Path) -> None:
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    config = BertConfig.from_pretrained(source)
    config.vocab_size = 300
    BertForMaskedLM(config).save_pretrained(folder)


def no_head(folder: Path, source: Path) -> None:
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    BertForMaskedLM.from_pretrained(source).bert.save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (other_tokenizer, "distillation.teacher: the tokenizer of {folder} differs from that of {corpus}/tokenizer"),
        (few_positions, "distillation.teacher: {folder} has 32 positions, too few for sequences of 64 tokens"),
        (few_rows, "distillation.teacher: the model in {folder} has embeddings for 300 pieces"),
        (no_head, "distillation.logits: {folder} has no masked-LM head"),
    ],
)
def test_teachers_that_cannot_teach_are_refused(make, sentence, run_file, corpus, teacher, tmp_path, unibert):
    folder = tmp_path / "other"
    make(folder, teacher)
    status, output = unibert("pretrain", str(run_file), f"--distillation.teacher={folder}")
    assert status == 1
    assert f"unibert: error: {sentence.format(folder=folder, corpus=corpus)}" in output
    assert "Traceback" not in output


def distilbert(folder: Path, source: Path) -> None:
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    sizes = {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "pad_token_id": 1}
    DistilBertForMaskedLM(DistilBertConfig(vocab_size=VOCAB_SIZE, **sizes)).save_pretrained(folder)


def deberta(folder: Path, source: Path) -> None:
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    relative = {"relative_attention": True, "position_buckets": 16, "pos_att_type": "p2c|c2p", "pad_token_id": 1}
    DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=VOCAB_SIZE, **sizes, **relative)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "logits", "input_options"),
    [
        (no_head, 0, ["--distillation.teacher_input=clean", "--distillation.teacher_prompt=query: "]),
        (distilbert, 1, []),
        (deberta, 1, ["--distillation.teacher_prompt=query: "]),
    ],
)
def test_teachers_of_other_kinds(make, logits, input_options, run_file, teacher, tmp_path, unibert):
    make(tmp_path / "other", teacher)
    words = [f"--distillation.teacher={tmp_path / 'other'}", f"--distillation.logits={logits}", *input_options]
    status, output = unibert("pretrain", str(run_file), *words, "--training.tokens=512")
    assert status == 0, output
    [step] = [line for line in lines_without_timing(tmp_path / "run") if "loss" in line]
    # The student has two of the four layers of the first teacher, and nothing of the others.
    assert 0.2 < step["distillation_hidden_loss"] < 1.5
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"Training started from layers 0, 3 of `{teacher.name}`" in card
    assert "attention relations (weight 1), hidden states (weight 1)" in card
    assert ("- distillation of `other`: its predictions at the masked positions (weight 1)" in card) == bool(logits)


def test_the_plan_counts_the_corpus_vocabulary(run_file, corpus, tmp_path):
    from unibert.cli import main

    main(["plan", str(run_file), "--gpus=1", "--gpu=h100", f"--output={tmp_path / 'plan.json'}"])
    assert json.loads((tmp_path / "plan.json").read_text())["vocab_size"] == Manifest.load(corpus).vocab_size
