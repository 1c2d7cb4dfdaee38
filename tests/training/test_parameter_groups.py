"""Which parameters share a learning rate and weight decay."""

import pytest

from unibert.model.config import AdversaryConfig, MLMConfig, ModelConfig
from unibert.model.encoder import build_masked_lm
from unibert.model.unibert import UniBERT
from unibert.training.config import OptimizerConfig
from unibert.training.engine import DISCRIMINATOR_GRADIENT_SCALE, parameter_groups

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}


@pytest.fixture(scope="module", params=["modernbert", "bert"])
def model(request) -> UniBERT:
    config = ModelConfig(architecture=request.param, config=SIZES)
    return UniBERT(build_masked_lm(config, 500, 64), 3, mlm=MLMConfig(), adversary=AdversaryConfig(learning_rate=0.5))


def settings_of(model: UniBERT, config: OptimizerConfig) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(model, config)
    found = [(name, (group["peak"], group["weight_decay"])) for group in groups for name in group["names"]]
    assert len(found) == len(dict(found)) == len(list(model.named_parameters()))
    return dict(found)


def test_matrices_of_the_layers_have_their_own_learning_rate(model):
    config = OptimizerConfig(learning_rate=0.016, layers_learning_rate=0.002, weight_decay=0.1)
    settings = settings_of(model, config)
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    for name, (peak, decay) in settings.items():
        assert decay == (0.1 if shapes[name] == 2 else 0.0), name
        in_layers = ".layers." in name or ".layer." in name
        expected = 0.5 if name.startswith("discriminator") else 0.002 if in_layers and shapes[name] == 2 else 0.016
        assert peak == expected, name
    assert {peak for peak, _ in settings.values()} == {0.016, 0.002, 0.5}


def test_without_it_the_groups_are_as_before(model):
    groups = parameter_groups(model, OptimizerConfig(learning_rate=0.016))
    assert len(groups) == 4
    assert {group["peak"] for group in groups} == {0.016, 0.5}
    assert {group["eps"] for group in groups} == {1e-6, 1e-6 * DISCRIMINATOR_GRADIENT_SCALE}


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_rate_must_be_positive(rate):
    with pytest.raises(ValueError, match=r"optimizer\.layers_learning_rate: must be positive, or null"):
        OptimizerConfig(layers_learning_rate=rate)
