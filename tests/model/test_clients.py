"""The exported folder gives the same vectors in every program that reads it.

The programs are other versions of transformers and sentence-transformers than the trainer's, and ONNX Runtime. They run
in processes of their own, with libraries from folders beside the environment's, which `make test` installs.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, DebertaV2Config, DebertaV2ForMaskedLM

from tests.corpus import fast_tokenizers
from tests.refusals import refused
from unibert.cli import main
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig
from unibert.corpus.fast_tokenizer import save_tokenizer
from unibert.corpus.manifest import Manifest
from unibert.corpus.pretrained_tokenizer import PretrainedTokenizer
from unibert.corpus.tokenizer import train_tokenizer
from unibert.demo import alignment
from unibert.model.config import ModelConfig
from unibert.model.encoder import build_masked_lm
from unibert.model.export import write_model_folder
from unibert.model.sentence_transformers_files import Projection
from unibert.model_card import LanguageCounts, Pretraining

CLIENTS = {"clients-4": "4.57.", "clients-5": "5."}
"""Folders of libraries beside the environment's own, and the version of transformers that they lead to."""
ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 20_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
# Large weights, so that attention is far from uniform and depends on positions and windows.
SIZES |= {"initializer_range": 0.3}
DISTILBERT_SIZES = {"dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 48, "initializer_range": 0.3}
LENGTH = 40
PATTERN = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
ONE_OF_EACH = ("modernbert", "bert", "roberta", "trimmed-xlm-roberta")
PROJECTED = "bert-projected"
LOADS_IN_BOTH = (*ONE_OF_EACH, PROJECTED, "modernbert-picked", "distilbert", "trimmed-deberta-v2")
ONLY_VERSION_5 = "modernbert-odd-layers"
CODES = ("de", "en", "ru")
# Hidden states are below 4 here, so that a rounding moves them by at most 2^-23. Four layers round some forty times one
# after another, and both sides of a comparison do: 2 · 40 · 2^-23.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def lines() -> list[str]:
    aligned = alignment.aligned_sentences()
    return [line for code in CODES for line in aligned[code]]


@pytest.fixture(scope="module")
def texts(lines) -> list[str]:
    """Short ones, and one that is longer than the models' positions."""
    return [lines[0], lines[300], " ".join(lines[540:560]), "1 <b>"]


@pytest.fixture(scope="module")
def folders(lines, tmp_path_factory) -> dict[str, Path]:
    """An export of every architecture, with tokenizers of every kind."""
    root = tmp_path_factory.mktemp("exports")
    torch.manual_seed(0)
    save_tokenizer(train_tokenizer(lines, vocab_size=900), root / "own", model_max_length=512)
    made = {"modernbert": export(root, "modernbert", root / "own", local_attention=8, rope_parameters=ROPE)}
    for name, layers in (("modernbert-picked", [0, 3]), (ONLY_VERSION_5, [0, 3, 1])):
        start = {"initialize_from": str(made["modernbert"]), "initialize_layers": layers}
        made[name] = export(root, "modernbert", root / "own", name, **start)
    for architecture, kind in (("bert", "wordpiece"), ("roberta", "byte-level-bpe"), ("xlm-roberta", "unigram")):
        tokenizer = fast_tokenizers.train(kind, lines, 1200, root / kind)
        PretrainedTokenizer.load(str(tokenizer)).save(root / f"corpus-{kind}", model_max_length=512)
        made[architecture] = export(root, architecture, root / f"corpus-{kind}")
    made[PROJECTED] = export(
        root, "bert", root / "corpus-wordpiece", PROJECTED, projection=Projection(torch.randn(48, 32), torch.randn(48))
    )
    made["distilbert"] = export(root, "distilbert", root / "corpus-wordpiece")
    source, corpus = made.pop("xlm-roberta"), root / "corpus"
    pool_by_first_token(source)
    settings = {"heldout_share": 0.2, "tokens_per_shard": 2000, "workers": 1, "languages": list(CODES)}
    build_corpus(
        CorpusConfig(
            inputs=[str(alignment.WIKI)], output=str(corpus), tokenizer=str(source), trim_vocabulary=800, **settings
        )
    )
    for original in (source, deberta(root / "deberta-v2", source)):
        name = f"trimmed-{original.name}"
        made[name] = root / name
        main(["trim", str(original), f"--corpus={corpus}", f"--output={made[name]}"])
    return made


def deberta(folder: Path, tokenizer: Path) -> Path:
    """An original that can only be trimmed, with the tokenizer of another model."""
    relative = {"relative_attention": True, "position_buckets": 8, "pos_att_type": "p2c|c2p"}
    config = DebertaV2Config(vocab_size=1200, max_position_embeddings=LENGTH, pad_token_id=1, **SIZES, **relative)
    DebertaV2ForMaskedLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def pool_by_first_token(folder: Path) -> None:
    """Give a model another vector of a sentence, as many public ones have: its first token's state, with length 1."""
    modules = json.loads((folder / "modules.json").read_text())
    normalize = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
    (folder / "modules.json").write_text(json.dumps([*modules, normalize]))
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def export(
    root: Path,
    architecture: str,
    tokenizer: Path,
    name: str = "",
    projection: Projection | None = None,
    **settings: Any,
) -> Path:
    loaded = PretrainedTokenizer.load(str(tokenizer))
    special_ids = loaded.text_tokenizer().special_ids
    start = {key: settings.pop(key) for key in ("initialize_from", "initialize_layers") if key in settings}
    sizes = DISTILBERT_SIZES if architecture == "distilbert" else {} if start else SIZES
    config = ModelConfig(architecture=architecture, config=sizes | settings, **start)
    model = build_masked_lm(config, loaded.vocab_size, LENGTH, special_ids=special_ids, tokenizer_dir=tokenizer)
    folder = root / (name or architecture)
    origin = Pretraining(
        name=folder.name,
        languages=[LanguageCounts(code=code, documents=1, tokens=2) for code in CODES],
        trainer="UniBERT",
        steps=0,
        tokens=0,
        masked_lm=True,
    )
    write_model_folder(model, tokenizer, folder, origin, projection=projection)
    return folder


@pytest.fixture(scope="module")
def answers(folders, texts, tmp_path_factory) -> dict[str, Any]:
    """What the programs of both folders of libraries answer; they run side by side."""
    root, started = tmp_path_factory.mktemp("clients"), {}
    for client in CLIENTS:
        libraries = Path(sys.prefix) / client
        if not libraries.is_dir():
            continue
        request, answer = root / f"{client}-request.json", root / f"{client}.json"
        onnx = [str(folders[name]) for name in ONE_OF_EACH] if client == "clients-5" else []
        request.write_text(json.dumps({"folders": list(map(str, folders.values())), "texts": texts, "onnx": onnx}))
        environment = {**os.environ, "PYTHONPATH": str(libraries), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        program = Path(__file__).with_name("client.py")
        process = subprocess.Popen(
            [sys.executable, str(program), str(request), str(answer)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        started[client] = process, answer
    answered = {}
    for client, (process, answer) in started.items():
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        answered[client] = json.loads(answer.read_text())
    return answered


def models_in(answers: dict[str, Any], client: str) -> dict[str, Any]:
    if client not in answers:
        pytest.skip(f"{client} is not installed beside the environment; `make test` installs it")
    return answers[client]["models"]


def reference(folder: Path, texts: list[str]) -> tuple[list[Any], list[Any], Any]:
    """Ids and hidden states of each text alone and logits of the first, in the trainer's own transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batches = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]
    encoder, masked_lm = (loader.from_pretrained(folder).eval() for loader in (AutoModel, AutoModelForMaskedLM))
    with torch.no_grad():
        states = [encoder(**batch).last_hidden_state[0] for batch in batches]
        logits = masked_lm(**batches[0]).logits[0]
    return [batch["input_ids"][0].tolist() for batch in batches], states, logits


def largest_difference(given: list[Any], expected: list[Any]) -> float:
    return max(
        float((torch.tensor(one, dtype=torch.float64) - other.double()).abs().max())
        for one, other in zip(given, expected, strict=True)
    )


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", [*LOADS_IN_BOTH, ONLY_VERSION_5])
def test_every_client_gives_the_same_ids_and_vectors(client, name, folders, texts, answers):
    given = models_in(answers, client)[str(folders[name])]
    assert answers[client]["versions"]["transformers"].startswith(CLIENTS[client])
    if (name, client) == (ONLY_VERSION_5, "clients-4"):
        assert given["error"].startswith("TypeError: ")
        return
    assert "error" not in given, given["error"]
    ids, states, logits = reference(folders[name], texts)
    assert given["ids"] == ids
    assert max(map(len, ids)) == LENGTH
    assert given["max_tokens"] == [LENGTH, LENGTH]
    assert largest_difference(given["states"], states) < TOLERANCE
    # A logit sums 32 products of values that differ as much, with weights of 0.3.
    assert largest_difference([given["logits"]], [logits]) < 10 * TOLERANCE
    if name == "trimmed-xlm-roberta":
        vectors = [torch.nn.functional.normalize(rows[0], dim=0) for rows in states]
    else:
        vectors = [rows.mean(dim=0) for rows in states]
    if name == PROJECTED:
        tensors = load_file(folders[name] / "2_Dense" / "model.safetensors")
        vectors = [tensors["linear.weight"] @ vector + tensors["linear.bias"] for vector in vectors]
        # Sums of 32 such values, with weights of order 1.
        assert largest_difference(given["vectors"], vectors) < 10 * TOLERANCE
    else:
        assert largest_difference(given["vectors"], vectors) < TOLERANCE
    assert ("onnx_states" in given) == (client == "clients-5" and name in ONE_OF_EACH)
    if "onnx_states" in given:
        assert largest_difference(given["onnx_states"], states) < TOLERANCE
    assert given["filled"] == 5
    assert [bool(printed) for printed in given["card"]] == [True] * 3
    assert given["card"][2] == ("(2, 48)" if name == PROJECTED else "(2, 32)")


def test_the_texts_would_show_another_pattern_of_layers_or_another_theta(folders, texts):
    """Otherwise the test above could not fail for a setting that version 4 does not read."""
    tokenizer = AutoTokenizer.from_pretrained(folders["modernbert"])
    batch = tokenizer(texts[2], truncation=True, return_tensors="pt")
    expected = AutoModel.from_pretrained(folders["modernbert"]).eval()(**batch).last_hidden_state
    other_theta = {"full_attention": ROPE["full_attention"], "sliding_attention": ROPE["full_attention"]}
    for change in ({"layer_types": PATTERN[:2] * 2}, {"rope_parameters": other_theta}):
        other = AutoModel.from_pretrained(folders["modernbert"], **change).eval()(**batch).last_hidden_state
        assert (other - expected).abs().max() > 100 * TOLERANCE


def test_settings_that_only_transformers_4_reads(folders):
    def settings(name: str) -> list[Any]:
        config = json.loads((folders[name] / "config.json").read_text())
        keys = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
        return [config.get(key, "absent") for key in keys]

    assert settings("modernbert") == [3, 20_000.0, 500.0]
    assert settings("modernbert-picked") == [1, 20_000.0, 500.0]
    assert settings(ONLY_VERSION_5) == [None, 20_000.0, 500.0]
    assert settings("bert") == ["absent"] * 3


def test_the_card_says_which_versions_compute_the_same(folders):
    for name, folder in folders.items():
        card = (folder / "README.md").read_text()
        assert ("Version 5 of transformers is required" in card) == (name == ONLY_VERSION_5)
        assert ("Version 4.57 of transformers computes the same" in card) == (name != ONLY_VERSION_5)


def test_the_card_of_a_trimmed_model_names_its_origin(folders):
    card = (folders["trimmed-xlm-roberta"] / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    pieces = Manifest.load(folders["bert"].parent / "corpus").vocab_size
    assert (
        f"This is `xlm-roberta` with {pieces:,} of its 1,200 pieces, those that text in 3 languages uses most" in card
    )
    assert "The licence of `xlm-roberta` applies to this model too" in card
    assert {key: metadata[key] for key in ("language", "pipeline_tag")} == {
        "language": list(CODES),
        "pipeline_tag": "fill-mask",
    }
    assert not {"license", "base_model"} & set(metadata)
    assert "## Training" not in card
    assert "as in the original model, whose settings of sentence-transformers are kept" in card


def test_a_damaged_file_of_the_original_is_refused(folders, tmp_path, capsys):
    root = folders["bert"].parent
    source = Path(shutil.copytree(root / "xlm-roberta", tmp_path / "source"))
    (source / "sentence_bert_config.json").write_text("")
    words = ["trim", source, f"--corpus={root / 'corpus'}", f"--output={tmp_path / 'small'}"]
    assert "sentence_bert_config.json: is not valid JSON (Expecting value" in refused(capsys, *words)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_folder_has_only_what_readers_need(folders):
    files = {str(path.relative_to(folders["bert"])) for path in folders["bert"].rglob("*") if path.is_file()}
    assert files == {
        "1_Pooling/config.json",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folders["bert"].rglob("*"))
