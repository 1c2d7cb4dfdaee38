import json

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.evaluation.tiny_model import save_tiny_model
from unibert.errors import UserError
from unibert.evaluation.embeddings import SentenceEncoder

WORDS = [f"w{number}" for number in range(50)]
SENTENCES = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w2 w1", "w12 w13 w14 w15"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", WORDS)


def test_vectors_are_the_mean_over_the_real_tokens_of_every_layer(model_folder):
    # Two sentences per batch need padding; each sentence alone needs none. float32 sums of values near 1 in another
    # order differ by a few units of 6e-8.
    vectors = SentenceEncoder.load(model_folder, batch_tokens=12).embed(SENTENCES)
    model, tokenizer = AutoModel.from_pretrained(model_folder).eval(), AutoTokenizer.from_pretrained(model_folder)
    assert vectors.shape == (4, 5, 32)
    for row, sentence in enumerate(SENTENCES):
        with torch.no_grad():
            hidden = model(**tokenizer(sentence, return_tensors="pt"), output_hidden_states=True)
        expected = torch.stack([layer[0].mean(dim=0) for layer in hidden.hidden_states])
        torch.testing.assert_close(vectors[:, row], expected, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(vectors[-1, row], hidden.last_hidden_state[0].mean(dim=0), atol=2e-6, rtol=1e-5)


def test_embedding_is_deterministic_and_cuts_long_sentences(model_folder):
    encoder = SentenceEncoder.load(model_folder, max_length=5)
    long = " ".join(WORDS)
    assert torch.equal(encoder.embed([long, *SENTENCES]), encoder.embed([long, *SENTENCES]))
    torch.testing.assert_close(encoder.embed([long]), encoder.embed(["w0 w1 w2"]))


def test_special_tokens_in_the_text_are_text(model_folder):
    """The tiny tokenizer splits at punctuation, and knows neither "<" nor "mask"."""
    encoder = SentenceEncoder.load(model_folder)
    spelt, unknown = encoder.embed(["w1 <mask> w2"]), encoder.embed(["w1 (else) w2"])
    torch.testing.assert_close(spelt, unknown)
    assert not torch.allclose(spelt, encoder.embed(["w1 w2"]))


def test_the_untrained_baseline_has_other_weights_fixed_by_its_seed(model_folder):
    trained = SentenceEncoder.load(model_folder).embed(SENTENCES)
    untrained = [SentenceEncoder.load(model_folder, untrained_seed=seed).embed(SENTENCES) for seed in (1, 1, 2)]
    assert untrained[0].shape == trained.shape
    assert torch.equal(untrained[0], untrained[1])
    assert not torch.allclose(untrained[0], untrained[2])
    assert not torch.allclose(untrained[0], trained)


def test_incomplete_model_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such model folder"):
        SentenceEncoder.load(tmp_path / "absent")
    for name, message in (
        ("config.json", "config.json is missing"),
        ("model.safetensors", "no weights"),
        ("tokenizer*.json", "no tokenizer"),
    ):
        folder = save_tiny_model(tmp_path / name.replace("*", ""), WORDS)
        for path in folder.glob(name):
            path.unlink()
        with pytest.raises(UserError, match=message):
            SentenceEncoder.load(folder)


def test_damaged_or_mismatched_weights_are_refused(tmp_path):
    cut = save_tiny_model(tmp_path / "cut", WORDS)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        SentenceEncoder.load(cut)

    deeper = save_tiny_model(tmp_path / "deeper", WORDS)
    config = json.loads((deeper / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config["layer_types"].append(config["layer_types"][-1])
    (deeper / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"lack \d+ tensors, the first layers\.3"):
        SentenceEncoder.load(deeper)

    mismatched = save_tiny_model(tmp_path / "mismatched", WORDS)
    larger = save_tiny_model(tmp_path / "larger", [*WORDS, "more"])
    (mismatched / "tokenizer.json").write_bytes((larger / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="the tokenizer has 56 tokens"):
        SentenceEncoder.load(mismatched)
