"""Compiled layers compute as uncompiled ones do, and are compiled once."""

import shutil
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.model.test_encoder import ARCHITECTURES
from unibert.model.activation_checkpointing import checkpoint_layers
from unibert.model.attention import PackedDocuments
from unibert.model.compilation import compile_layers, compiler_obstacle
from unibert.model.config import ModelConfig
from unibert.model.distillation import AttentionProjections
from unibert.model.encoder import build_masked_lm, encode

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
# Hidden states of order 1 after four layers, with fp32 sums of up to 100 terms in another order; a loss adds 8,192.
TOLERANCE = 1e-5


def build() -> Any:
    torch.manual_seed(0)
    return build_masked_lm(ModelConfig(config=ARCHITECTURES["modernbert"]), 500, 64).train()


def states(model: Any, lengths: int, *, all_states: bool = False, attention: str = "sdpa") -> tuple[torch.Tensor, ...]:
    """The hidden states of two sequences of documents of ``lengths`` tokens."""
    ids = torch.randint(5, 500, (2, 64), generator=torch.Generator().manual_seed(lengths))
    numbers = (torch.arange(64) // lengths).expand(2, 64) + 100 * torch.arange(2)[:, None]
    positions = (torch.arange(64) % lengths).expand(2, 64)
    ids, numbers, positions = (tensor.to(model.device) for tensor in (ids, numbers, positions))
    documents = PackedDocuments.from_ids(numbers)
    return encode(model, ids, positions, documents, hidden_states=all_states, attention=attention)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@needs_compiler
def test_compiled_layers_give_the_numbers_of_uncompiled_ones_and_compile_once():
    plain, compiled = build(), build()
    names = list(compiled.state_dict())
    assert compile_layers(compiled) == (4, 4)
    checkpoint_layers(compiled, 2)
    assert list(compiled.state_dict()) == names
    before = graphs()
    for step, lengths in enumerate((20, 7, 64)):
        ours, theirs = (states(model, lengths, all_states=True) for model in (compiled, plain))
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
        for model, outputs in ((compiled, ours), (plain, theirs)):
            model.zero_grad()
            sum(output.square().mean() for output in outputs).backward()
        for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
            if theirs.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad, atol=TOLERANCE, rtol=TOLERANCE)
        if step == 0:
            # The first layer has no norm before its attention.
            assert graphs() - before == 2
            before = graphs()
    assert graphs() == before
    # Evaluation is uncompiled, whatever its shapes.
    for model in (compiled, plain):
        model.eval()
    with torch.no_grad():
        assert torch.equal(states(compiled, 20)[0], states(plain, 20)[0])
    assert graphs() == before


@needs_compiler
def test_other_documents_compile_nothing_again_with_varlen_attention():
    model = build()
    if torch.cuda.is_available():
        model.to("cuda", torch.bfloat16)
    assert compile_layers(model) == (4, 4)
    after = []
    for lengths in (20, 7, 64):
        states(model, lengths, attention="varlen")[0].float().square().mean().backward()
        after.append(graphs())
    assert after == after[:1] * 3


def test_a_layer_with_hooks_inside_stays_uncompiled():
    model = build()
    projections = AttentionProjections(model, -1)
    assert compile_layers(model) == (3, 4)
    model.base_model.layers[-1](
        torch.zeros(1, 3, 64), position_embeddings=(torch.ones(1, 3, 32), torch.zeros(1, 3, 32))
    )
    assert projections.take()[0].shape == (1, 3, 64)


@pytest.mark.parametrize(
    ("compiler", "obstacle"),
    [
        ("no-such-compiler", "needs a C++ compiler, and CXX=no-such-compiler does not exist; install g++ or set CXX"),
        (None, "needs a C++ compiler, and none is installed; install g++ or set CXX"),
    ],
)
def test_a_missing_compiler_is_named(compiler, obstacle, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if compiler is not None:
        monkeypatch.setenv("CXX", compiler)
    assert compiler_obstacle(torch.device("cpu")) == obstacle
