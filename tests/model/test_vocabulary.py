"""A model brought to a corpus's vocabulary gives the states and logits of the original."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from unibert.model.config import ModelConfig
from unibert.model.encoder import build_masked_lm
from unibert.model.vocabulary import take_vocabulary

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VOCAB_SIZE = 200
SOURCE_IDS = np.array([0, 1, 2, 3, 4, *range(7, 190, 3), 199])


@pytest.fixture(params=["modernbert", "bert", "roberta", "xlm-roberta"])
def model(request) -> PreTrainedModel:
    torch.manual_seed(0)
    return build_masked_lm(ModelConfig(architecture=request.param, config=SIZES), VOCAB_SIZE, 16).eval()


@torch.no_grad()
def test_states_and_logits_are_those_of_the_original(model, tmp_path: Path):
    ids = torch.randint(5, len(SOURCE_IDS), (3, 12))
    source_ids = torch.from_numpy(SOURCE_IDS)
    before = model(source_ids[ids], output_hidden_states=True)
    take_vocabulary(model, SOURCE_IDS)
    model.save_pretrained(tmp_path)
    for taken in (model, AutoModelForMaskedLM.from_pretrained(tmp_path).eval()):
        after = taken(ids, output_hidden_states=True)
        assert taken.config.vocab_size == len(SOURCE_IDS)
        assert all(map(torch.equal, after.hidden_states, before.hidden_states))
        # Products with fewer rows may add up in another order.
        torch.testing.assert_close(after.logits, before.logits[..., source_ids], rtol=1e-5, atol=1e-6)


def test_rows_beyond_the_tokenizers_pieces_are_dropped(model):
    take_vocabulary(model, np.arange(150))
    assert model.get_input_embeddings().weight.shape == (150, 32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model(torch.tensor([[2, 149, 3]])).logits.shape[-1] == 150


def test_the_whole_vocabulary_changes_nothing(model):
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    take_vocabulary(model, np.arange(VOCAB_SIZE))
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before


def test_ids_beyond_the_model_are_refused(model):
    with pytest.raises(ValueError, match="has embeddings for 200 pieces, and its tokenizer ids up to 200"):
        take_vocabulary(model, np.arange(VOCAB_SIZE + 1))


def test_a_padding_id_from_which_positions_count_must_stay(model):
    moved = np.array([1, *SOURCE_IDS[2:]])
    if model.config.model_type.endswith("roberta"):
        model.config.pad_token_id = 1
        take_vocabulary(model, np.array([0, 1, 5, 9]))
        model.config.pad_token_id = 3
        with pytest.raises(ValueError, match="counts positions from its padding id 3"):
            take_vocabulary(model, np.array([0, 1, 3]))
    else:
        take_vocabulary(model, moved)
        # Id 0, the padding, is not among those that are taken.
        assert model.config.pad_token_id is None
