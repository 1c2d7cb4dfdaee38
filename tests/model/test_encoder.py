"""Building of encoders, and access to the parts that the objectives need."""

import pytest
import torch

from unibert.errors import UserError
from unibert.model.architectures import attention_projections, head_features
from unibert.model.config import ModelConfig
from unibert.model.encoder import build_masked_lm

SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 96}
ARCHITECTURES = {
    "modernbert": {**SIZES, "local_attention": 8},
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "distilbert": {"dim": 64, "n_layers": 4, "n_heads": 2, "hidden_dim": 96},
}
# Hidden states are of order 1 after a layer norm; four layers have fp32 sums of up to 100 terms in another order.
TOLERANCE = 1e-5


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    torch.manual_seed(0)
    return build_masked_lm(ModelConfig(architecture=request.param, config=ARCHITECTURES[request.param]), 500, 64).eval()


@torch.no_grad()
def test_head_features_times_the_decoder_are_the_logits(model):
    ids = torch.randint(5, 500, (1, 20))
    decoder = model.get_output_embeddings()
    hidden = model.base_model(input_ids=ids).last_hidden_state
    logits = head_features(model, hidden) @ decoder.weight.T + decoder.bias
    torch.testing.assert_close(logits, model(input_ids=ids).logits, atol=TOLERANCE, rtol=0)


def test_projections_are_the_layer_asked_for(model):
    names = {module: name for name, module in model.named_modules()}
    for layer in (-1, 1):
        modules = attention_projections(model, layer)
        assert sum(module.out_features for module in modules) == 3 * 64
        assert all(f".{layer % 4}." in names[module] for module in modules)


def test_a_student_takes_the_named_layers(tmp_path, model):
    model.save_pretrained(tmp_path)
    architecture = model.config.model_type
    student = build_masked_lm(
        ModelConfig(architecture=architecture, initialize_from=str(tmp_path), initialize_layers=[0, 3]), 500, 64
    )
    assert student.config.num_hidden_layers == 2
    ours, theirs = attention_projections(student, 1), attention_projections(model, 3)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([0, 3], "layers: 3, while model.initialize_layers names 2 layers; leave it out"),
        (None, "layers: 3, while .* has 4 layers; name those to keep in model.initialize_layers"),
    ],
)
def test_a_number_of_layers_that_differs_from_the_named_ones_is_refused(layers, message, tmp_path, model):
    model.save_pretrained(tmp_path)
    config = ModelConfig(initialize_from=str(tmp_path), initialize_layers=layers, config={"num_hidden_layers": 3})
    with pytest.raises(UserError, match=message):
        build_masked_lm(config, 500, 64)


def test_rotated_positions_have_no_limit_and_may_turn_otherwise(tmp_path):
    sizes = ARCHITECTURES["modernbert"] | {"max_position_embeddings": 8, "local_rope_theta": 5000.0}
    build_masked_lm(ModelConfig(config=sizes), 500, 64).save_pretrained(tmp_path)
    config = ModelConfig(initialize_from=str(tmp_path), config={"global_rope_theta": 40000.0})
    longer = build_masked_lm(config, 500, 128).config
    assert longer.max_position_embeddings == 128
    thetas = {kind: rope["rope_theta"] for kind, rope in longer.rope_parameters.items()}
    assert thetas == {"full_attention": 40000.0, "sliding_attention": 5000.0}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architecture": "gpt2"},
            "model.architecture: architecture 'gpt2' is not supported; choose one of modernbert",
        ),
        ({"architecture": "deberta-v2"}, "model.architecture: architecture 'deberta-v2' can only teach; choose one of"),
        ({"config": {"hiden_size": 64}}, "modernbert has no such setting; did you mean 'hidden_size'"),
        ({"config": {"vocab_size": 7}}, "comes from the corpus's tokenizer"),
        ({"config": {"hidden_size": "wide"}}, "model.config: .*hidden_size.* expected int"),
        ({"config": {"hidden_size": 65, "num_attention_heads": 2}}, "not a multiple of num_attention_heads"),
        (
            {"architecture": "bert", "config": {"max_position_embeddings": 8}},
            "model.config.max_position_embeddings: 8 is too small for training.sequence_length",
        ),
        ({"initialize_from": "/nowhere"}, "model.initialize_from: /nowhere is not a Hugging Face model folder"),
        (
            {"initialize_from": "nobody/nothing"},
            "model.initialize_from: nobody/nothing is neither a folder nor a model that the Hugging Face hub gives .*; "
            "without network, fetch it elsewhere",
        ),
    ],
)
def test_invalid_models_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        build_masked_lm(ModelConfig(**config), 500, 64)
