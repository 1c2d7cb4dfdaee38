from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from unibert_kernels import LanguageDiscriminator, adversary_loss, reference

from .closeness import BF16_GRADIENT, FP32_GRADIENT, FP32_LOSS, assert_same, distance, gradients, repeats_bits

LEAVES = ("hidden", "w1", "b1", "w2", "b2")
LEVELS = ("mean", "cls", "token")
OBJECTIVES = ("reversal", "uniform")


def batch(dtype: torch.dtype = torch.float32, reversal: float = 0.3) -> dict[str, Any]:
    """Seven packed documents of 1 to 12 tokens with padding between them and at the end; five languages, one absent."""
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 1, 12, 7, 3, 9, 2]
    ids = torch.cat([torch.full((length,), document) for document, length in enumerate(lengths)])
    ids = torch.cat([ids[:18], torch.full((4,), -1), ids[18:], torch.full((3,), -1)])

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    return {
        "hidden": leaf(len(ids), 16),
        "document_ids": ids,
        "languages": torch.tensor([0, 1, 4, 2, 2, 0, 4]),
        "w1": leaf(8, 16),
        "b1": leaf(8),
        "w2": leaf(5, 8),
        "b2": leaf(5),
        "reversal": torch.tensor(reversal, dtype=torch.float64 if dtype == torch.float64 else torch.float32),
    }


def classify_means(tensors: dict[str, Any], hidden: Tensor) -> Tensor:
    """Logits (D, L) of an ordinary classifier on the documents' means."""
    pooled = torch.stack([hidden[tensors["document_ids"] == document].mean(0) for document in range(7)])
    return F.linear(F.gelu(F.linear(pooled, tensors["w1"], tensors["b1"])), tensors["w2"], tensors["b2"])


def leaves(tensors: dict[str, Any]) -> list[Tensor]:
    return [tensors[name] for name in LEAVES]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("level", LEVELS)
def test_loss_and_gradients_agree_with_float64(level: str, objective: str, weighted: bool) -> None:
    tensors = batch() | {"class_weights": torch.tensor([0.5, 2.0, 1.0, 1.0, 0.25]) if weighted else None}
    actual = adversary_loss(**tensors, level=level, objective=objective)
    expected = reference.adversary_loss(**tensors, level=level, objective=objective)
    for name in ("loss", "weight_sum", "count", "correct"):
        assert getattr(actual, name).item() == pytest.approx(getattr(expected, name).item(), rel=FP32_LOSS), name
    got, wanted = gradients(actual.loss, *leaves(tensors)), gradients(expected.loss, *leaves(tensors))
    for name, one, other in zip(LEAVES, got, wanted, strict=True):
        assert distance(one, other) <= FP32_GRADIENT, name


@pytest.mark.parametrize("level", LEVELS)
def test_reversal_scales_only_the_gradient_of_hidden(level: str) -> None:
    def run(reversal: float) -> tuple[Tensor, ...]:
        tensors = batch(reversal=reversal)
        return gradients(adversary_loss(**tensors, level=level).loss, *leaves(tensors))

    plain = run(-1.0)  # λ = -1: the gradient without reversal
    for factor in (0.5, 2.0, 0.0):  # powers of two, so that the product is exact
        assert_same(run(factor), [-factor * plain[0], *plain[1:]], repeats_bits("chunked"))


def test_without_reversal_the_gradient_is_that_of_an_ordinary_classifier() -> None:
    tensors = batch(reversal=-1.0)
    loss = F.cross_entropy(classify_means(tensors, tensors["hidden"]), tensors["languages"])
    actual = adversary_loss(**tensors).loss
    for one, other in zip(gradients(actual, *leaves(tensors)), gradients(loss, *leaves(tensors)), strict=True):
        assert distance(one, other) <= FP32_GRADIENT


def test_the_uniform_objective_does_not_change_the_discriminators_gradients() -> None:
    def run(objective: str) -> tuple[Tensor, ...]:
        tensors = batch()
        return gradients(adversary_loss(**tensors, objective=objective).loss, *leaves(tensors))

    reversed_, uniform = run("reversal"), run("uniform")
    assert distance(uniform[0], reversed_[0]) > 0.1
    assert_same(uniform[1:], reversed_[1:], repeats_bits("chunked"))


def test_a_step_along_the_uniform_objective_raises_the_entropy() -> None:
    tensors = batch(reversal=1.0)

    @torch.no_grad()
    def entropy(hidden: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=classify_means(tensors, hidden)).entropy().mean()

    (gradient,) = gradients(adversary_loss(**tensors, objective="uniform").loss, tensors["hidden"])
    assert entropy(tensors["hidden"] - 0.1 * gradient) > entropy(tensors["hidden"])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("level", LEVELS)
def test_padding_gets_zero_gradient(level: str, objective: str) -> None:
    tensors = batch()
    (gradient,) = gradients(adversary_loss(**tensors, level=level, objective=objective).loss, tensors["hidden"])
    padding = tensors["document_ids"] == -1
    assert (gradient[padding] == 0).all()
    assert (gradient[~padding] != 0).any(dim=1).all() == (level != "cls")
    if level == "cls":
        firsts = torch.tensor([0, 5, 6, 22, 29, 32, 41])  # padding is at 18 … 21
        assert torch.equal((gradient != 0).any(dim=1).nonzero()[:, 0], firsts)


@pytest.mark.parametrize("level", LEVELS)
def test_documents_without_tokens_do_not_count(level: str) -> None:
    tensors = batch()
    more = tensors | {"languages": torch.cat([tensors["languages"], torch.tensor([3, 3])])}
    one, other = adversary_loss(**tensors, level=level), adversary_loss(**more, level=level)
    assert one.count == other.count
    assert torch.equal(one.weight_sum, other.weight_sum)
    assert one.loss.item() == pytest.approx(other.loss.item(), rel=FP32_LOSS)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("num_documents", [0, 2])
def test_only_padding_gives_zero_loss_and_gradients(level: str, num_documents: int) -> None:
    tensors = batch()
    tensors |= {
        "document_ids": torch.full_like(tensors["document_ids"], -1),
        "languages": torch.zeros(num_documents).long(),
    }
    output = adversary_loss(**tensors, level=level)
    assert (output.loss, output.weight_sum, output.count, output.correct) == (0, 0, 0, 0)
    assert all((gradient == 0).all() for gradient in gradients(output.loss, *leaves(tensors)))


@pytest.mark.parametrize("level", LEVELS)
def test_no_tokens_give_zero_loss(level: str) -> None:
    tensors = batch()
    tensors |= {"hidden": tensors["hidden"][:0], "document_ids": tensors["document_ids"][:0]}
    assert adversary_loss(**tensors, level=level).loss == 0


def test_half_precision_hidden_states_under_autocast() -> None:
    tensors = batch()
    tensors["hidden"] = tensors["hidden"].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = adversary_loss(**tensors)
    expected = reference.adversary_loss(**tensors)
    assert actual.loss.item() == pytest.approx(expected.loss.item(), rel=FP32_LOSS)
    hidden, *discriminator = gradients(actual.loss, *leaves(tensors))
    wanted, *others = gradients(expected.loss, *leaves(tensors))
    assert hidden.dtype == torch.bfloat16
    assert distance(hidden, wanted) <= BF16_GRADIENT
    assert all(distance(one, other) <= FP32_GRADIENT for one, other in zip(discriminator, others, strict=True))


@pytest.mark.parametrize("level", LEVELS)
def test_gradcheck_of_the_discriminator(level: str) -> None:
    tensors = batch(torch.float64)
    names = LEAVES[1:]

    def loss(*parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        return adversary_loss(**{**tensors, **named, "hidden": tensors["hidden"].detach()}, level=level).loss

    assert torch.autograd.gradcheck(loss, [tensors[name] for name in names])


@pytest.mark.parametrize("level", LEVELS)
def test_gradcheck_of_hidden_without_reversal(level: str) -> None:
    tensors = batch(torch.float64, reversal=-1.0)

    def loss(hidden: Tensor) -> Tensor:
        return adversary_loss(**{**tensors, "hidden": hidden}, level=level).loss

    assert torch.autograd.gradcheck(loss, tensors["hidden"])


@pytest.mark.usefixtures("placement")
def test_bitwise_the_same_from_run_to_run() -> None:
    def run() -> list[Tensor]:
        tensors = batch()
        output = adversary_loss(**tensors)
        return [output.loss, *gradients(output.loss, *leaves(tensors))]

    assert_same(run(), run(), repeats_bits("chunked"))


def test_the_module_passes_its_parameters_to_the_function() -> None:
    tensors = batch()
    module = LanguageDiscriminator(16, 5, 8, level="token", objective="uniform")
    inputs = {name: tensors[name] for name in ("hidden", "document_ids", "languages", "reversal")}
    output = module(**inputs)
    parameters = dict(module.named_parameters())
    assert {name: tuple(value.shape) for name, value in parameters.items()} == {
        "w1": (8, 16),
        "b1": (8,),
        "w2": (5, 8),
        "b2": (5,),
    }
    expected = adversary_loss(**inputs, **parameters, level="token", objective="uniform")
    assert_same(output, expected, repeats_bits("chunked"))
    output.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_a_discriminator_trained_without_reversal_learns_the_languages() -> None:
    torch.manual_seed(0)
    tensors = batch(reversal=0.0)
    module = LanguageDiscriminator(16, 5, 32)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    inputs = {name: tensors[name].detach() for name in ("hidden", "document_ids", "languages", "reversal")}
    for _ in range(100):
        optimizer.zero_grad()
        output = module(**inputs)
        output.loss.backward()
        optimizer.step()
    assert output.correct == output.count == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "fast"}, "path: must be one of auto, chunked"),
        ({"level": "sentence"}, "level: must be one of mean, cls, token"),
        ({"objective": "none"}, "objective: must be one of reversal, uniform"),
        ({"document_ids": torch.zeros(3)}, "document_ids"),
        ({"w1": torch.zeros(8, 15)}, "w1"),
        ({"w2": torch.zeros(5, 9)}, "w2"),
        ({"b2": torch.zeros(4)}, "b2"),
        ({"class_weights": torch.ones(4)}, "class_weights"),
        ({"reversal": torch.ones(1)}, "reversal"),
    ],
)
def test_invalid_arguments_are_rejected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        adversary_loss(**(batch() | change))


def test_the_module_rejects_an_unknown_level_at_construction() -> None:
    with pytest.raises(ValueError, match=r"^level"):
        LanguageDiscriminator(16, 5, 8, level="sentence")  # type: ignore[arg-type]
