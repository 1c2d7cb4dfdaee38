"""Layers whose activations are computed again give the same numbers, bit for bit."""

import pytest
import torch

from tests.model.test_encoder import ARCHITECTURES
from unibert.model.activation_checkpointing import checkpoint_layers
from unibert.model.attention import PackedDocuments
from unibert.model.config import ModelConfig
from unibert.model.encoder import build_masked_lm, encode


def states_and_gradients(architecture: str, attention: str, checkpointing: int | str | None) -> list[torch.Tensor]:
    """All hidden states of a training pass with dropout, and the gradients of a loss that reads each of them."""
    torch.manual_seed(0)
    dropout = {"dropout": 0.1} if architecture == "distilbert" else {"mlp_dropout": 0.1}
    config = ARCHITECTURES[architecture] | (dropout if architecture in ("modernbert", "distilbert") else {})
    model = build_masked_lm(ModelConfig(architecture=architecture, config=config), 500, 64).train()
    if checkpointing is not None:
        checkpoint_layers(model, checkpointing)
    ids = torch.randint(5, 500, (2, 64))
    documents = PackedDocuments.from_ids((torch.arange(64) // 20).expand(2, 64) + 4 * torch.arange(2)[:, None])
    positions = (torch.arange(64) % 20).expand(2, 64)
    states = encode(model, ids, positions, documents, hidden_states=True, attention=attention)
    assert len(states) == 5
    torch.stack([state * torch.linspace(-1, 1, state.numel()).view_as(state) for state in states]).sum().backward()
    return [*states, *(p.grad for p in model.base_model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("architecture", "attention"), [*((name, "sdpa") for name in ARCHITECTURES), ("modernbert", "varlen")]
)
def test_checkpoints_change_no_number(architecture, attention):
    plain = states_and_gradients(architecture, attention, None)
    for checkpointing in (1, 3, "selective"):
        checkpointed = states_and_gradients(architecture, attention, checkpointing)
        assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))
