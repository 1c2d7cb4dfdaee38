"""The Triton path of the adversary: on a GPU where there is one, else interpreted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from unibert_kernels import AdversaryOutput, adversary_loss, reference

from .closeness import (
    BF16_GRADIENT,
    DEVICE,
    FP32_GRADIENT,
    FP32_LOSS,
    assert_same,
    distance,
    gradients,
    repeats_bits,
)

LEAVES = ("hidden", "w1", "b1", "w2", "b2")
LEVELS = ("mean", "cls", "token")
OBJECTIVES = ("reversal", "uniform")
FP16_GRADIENT = 2.0**-11
"""fp16 holds 11 bits, so rounding the finished fp32 gradient errs by at most 2^-11 of each normal element."""
NUM_LANGUAGES = 21


def batch(
    dtype: torch.dtype = torch.float32, reversal: float = 0.3, hidden_size: int = 80, intermediate_size: int = 48
) -> dict[str, Any]:
    """19 documents in two tiles of 16: the second is longer than a block of tokens, the fourth and fifth are
    interleaved. There is padding inside and at the end, and two languages are absent. H and F are no multiples of a
    block."""
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 70, 1, 4, 4, 9, *[2] * 13]
    ids = torch.cat([torch.full((length,), document) for document, length in enumerate(lengths)])
    ids[76:84] = torch.tensor([3, 4, 4, 3, 3, 4, 3, 4])
    ids = torch.cat([ids[:40], torch.full((4,), -1), ids[40:78], torch.full((2,), -1), ids[78:], torch.full((3,), -1)])

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(DEVICE, dtype).requires_grad_()

    b2 = leaf(NUM_LANGUAGES)
    with torch.no_grad():
        b2[0] += 6  # so that there are hits
    return {
        "hidden": leaf(len(ids), hidden_size),
        "document_ids": ids.to(DEVICE),
        "languages": torch.arange(19, device=DEVICE) % 6 * 4 % NUM_LANGUAGES,
        "w1": leaf(intermediate_size, hidden_size, scale=hidden_size**-0.5),
        "b1": leaf(intermediate_size),
        "w2": leaf(NUM_LANGUAGES, intermediate_size, scale=intermediate_size**-0.5),
        "b2": b2,
        "reversal": torch.tensor(reversal, device=DEVICE),
    }


def leaves(tensors: dict[str, Any]) -> list[Tensor]:
    return [tensors[name] for name in LEAVES]


def fused(tensors: dict[str, Any], **choices: Any) -> AdversaryOutput:
    return adversary_loss(**tensors, **choices, path="fused")


def assert_agrees(tensors: dict[str, Any], expected: AdversaryOutput, **choices: Any) -> None:
    actual = fused(tensors, **choices)
    for name in ("loss", "weight_sum", "count", "correct"):
        one, other = getattr(actual, name), getattr(expected, name)
        assert one.shape == ()
        assert one.dtype == (torch.int64 if name in ("count", "correct") else torch.float32)
        assert one.item() == pytest.approx(other.item(), rel=FP32_LOSS), name
    got, wanted = gradients(actual.loss, *leaves(tensors)), gradients(expected.loss, *leaves(tensors))
    for name, one, other in zip(LEAVES, got, wanted, strict=True):
        assert distance(one, other) <= FP32_GRADIENT, name


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("level", LEVELS)
def test_loss_and_gradients_agree_with_float64(level: str, objective: str, weighted: bool) -> None:
    class_weights = torch.linspace(0.25, 2.0, NUM_LANGUAGES, device=DEVICE) if weighted else None
    tensors = batch() | {"class_weights": class_weights}
    expected = reference.adversary_loss(**tensors, level=level, objective=objective)
    assert 0 < expected.correct < expected.count
    assert_agrees(tensors, expected, level=level, objective=objective)


@pytest.mark.parametrize("level", LEVELS)
def test_several_blocks_of_hidden_and_intermediate_columns(level: str) -> None:
    tensors = batch(hidden_size=48, intermediate_size=272)
    assert_agrees(tensors, reference.adversary_loss(**tensors, level=level), level=level)
    tensors = batch(hidden_size=272, intermediate_size=16)
    assert_agrees(tensors, reference.adversary_loss(**tensors, level=level), level=level)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("num_languages", [2, 16, 250])
def test_few_and_many_languages(num_languages: int, objective: str) -> None:
    tensors = batch()
    generator = torch.Generator().manual_seed(1)
    tensors["languages"] = torch.randint(num_languages, (19,), generator=generator).to(DEVICE)
    tensors["w2"] = torch.randn(num_languages, 48, generator=generator).to(DEVICE).requires_grad_()
    tensors["b2"] = torch.randn(num_languages, generator=generator).to(DEVICE).requires_grad_()
    assert_agrees(tensors, reference.adversary_loss(**tensors, objective=objective), objective=objective)


@pytest.mark.parametrize("level", LEVELS)
def test_samples_in_several_slices(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from unibert_kernels.fused import adversary

    monkeypatch.setattr(adversary, "SAMPLES", 64 if level == "token" else 16)
    tensors = batch()
    expected = reference.adversary_loss(**tensors, level=level, objective="uniform")
    assert_agrees(tensors, expected, level=level, objective="uniform")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("level", LEVELS)
def test_agrees_with_the_chunked_path_where_documents_have_no_tokens(level: str, objective: str) -> None:
    tensors = batch()
    tensors["languages"] = torch.cat([tensors["languages"], torch.tensor([3, 3], device=DEVICE)])
    tensors["document_ids"] = torch.where(tensors["document_ids"] == 2, -1, tensors["document_ids"])
    expected = adversary_loss(**tensors, level=level, objective=objective, path="chunked")
    assert_agrees(tensors, expected, level=level, objective=objective)


@pytest.mark.parametrize("path", ["fused", "chunked"])
@pytest.mark.parametrize("language", [NUM_LANGUAGES, -1, 2**40])
def test_an_invalid_language_makes_loss_and_gradients_nan(language: int, path: str) -> None:
    tensors = batch()
    tensors["languages"] = tensors["languages"].clone()
    tensors["languages"][3] = language
    loss = adversary_loss(**tensors, path=path).loss
    assert loss.isnan()
    assert all(gradient.isnan().any() for gradient in gradients(loss, *leaves(tensors)))


@pytest.mark.parametrize("language", [NUM_LANGUAGES, -1, 2**40])
@pytest.mark.parametrize("level", LEVELS)
def test_an_invalid_language_of_a_document_without_tokens_is_detected(level: str, language: int) -> None:
    tensors = batch()
    tensors["languages"] = torch.cat([tensors["languages"], torch.tensor([language], device=DEVICE)])
    outputs = {path: adversary_loss(**tensors, level=level, path=path) for path in ("fused", "chunked")}
    for output in outputs.values():
        hidden, *discriminator = gradients(output.loss, *leaves(tensors))
        assert output.loss.isnan()
        assert all(gradient.isnan().all() for gradient in discriminator)
        assert hidden.isnan().any()
    assert outputs["fused"][1:] == outputs["chunked"][1:]


@pytest.mark.parametrize("level", LEVELS)
def test_an_invalid_language_is_treated_as_the_first(level: str) -> None:
    tensors = batch() | {"class_weights": torch.linspace(0.25, 2.0, NUM_LANGUAGES, device=DEVICE)}
    tensors["languages"] = tensors["languages"].clone()
    tensors["languages"][1] = NUM_LANGUAGES
    actual, expected = (adversary_loss(**tensors, level=level, path=path) for path in ("fused", "chunked"))
    assert actual.weight_sum.item() == pytest.approx(expected.weight_sum.item(), rel=FP32_LOSS)
    assert actual[2:] == expected[2:]


@pytest.mark.parametrize("level", LEVELS)
def test_reversal_scales_only_the_gradient_of_hidden(level: str) -> None:
    def run(reversal: float) -> tuple[Tensor, ...]:
        tensors = batch(reversal=reversal)
        return gradients(fused(tensors, level=level).loss, *leaves(tensors))

    plain = run(-1.0)  # λ = -1: the gradient without reversal
    for factor in (2.0, 0.0):  # powers of two, so that the product is exact
        assert_same(run(factor), [-factor * plain[0], *plain[1:]], repeats_bits("fused"))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("level", LEVELS)
def test_padding_gets_zero_gradient_even_if_it_holds_nan(level: str, objective: str) -> None:
    tensors = batch()
    padding = tensors["document_ids"] == -1
    with torch.no_grad():
        tensors["hidden"][padding] = float("nan")
    hidden, *discriminator = gradients(fused(tensors, level=level, objective=objective).loss, *leaves(tensors))
    assert (hidden[padding] == 0).all()
    assert all(gradient.isfinite().all() for gradient in discriminator)
    receives = (hidden != 0).any(dim=1)
    if level == "cls":
        ids = tensors["document_ids"].tolist()
        assert receives.nonzero()[:, 0].tolist() == sorted(ids.index(document) for document in range(19))
    else:
        assert torch.equal(receives, ~padding)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("num_documents", [0, 2])
@pytest.mark.parametrize("num_tokens", [0, 5])
def test_without_samples_loss_and_gradients_are_zero(level: str, num_documents: int, num_tokens: int) -> None:
    tensors = batch()
    tensors |= {
        "hidden": tensors["hidden"].detach()[:num_tokens].requires_grad_(),
        "document_ids": torch.full((num_tokens,), -1, device=DEVICE),
        "languages": torch.zeros(num_documents, dtype=torch.int64, device=DEVICE),
    }
    output = fused(tensors, level=level)
    assert (output.loss, output.weight_sum, output.count, output.correct) == (0, 0, 0, 0)
    assert all((gradient == 0).all() for gradient in gradients(output.loss, *leaves(tensors)))


@pytest.mark.parametrize("level", LEVELS)
def test_a_loss_scale_acts_before_rounding_to_fp16(level: str) -> None:
    tensors = batch(torch.float16)
    scale = 2.0**12
    # Without the scale most of hidden's gradient would be below fp16's normal numbers, 2^-14.
    actual = gradients(fused(tensors, level=level).loss * scale, *leaves(tensors))
    expected = reference.adversary_loss(**tensors, level=level).loss * scale
    wanted = torch.autograd.grad(expected, leaves(tensors))
    for name, one, other in zip(LEAVES, actual, wanted, strict=True):
        assert one.dtype == torch.float16
        # Both round nearly the same number, at worst to neighbours.
        assert distance(one, other) <= 2 * FP16_GRADIENT, name


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the interpreter does not round to bf16 correctly")
@pytest.mark.parametrize("level", LEVELS)
def test_bf16_error_of_hidden_states_is_the_rounding_of_their_gradient(level: str) -> None:
    tensors = batch()
    tensors["hidden"] = tensors["hidden"].detach().bfloat16().requires_grad_()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        actual = gradients(fused(tensors, level=level).loss, *leaves(tensors))
    expected = gradients(reference.adversary_loss(**tensors, level=level).loss, *leaves(tensors))
    for name, one, other in zip(LEAVES, actual, expected, strict=True):
        # Both round nearly the same number, at worst to neighbours.
        assert distance(one, other) <= (2 * BF16_GRADIENT if name == "hidden" else FP32_GRADIENT), name


def test_gradients_have_the_dtypes_of_their_parameters() -> None:
    tensors = batch()
    tensors["b2"] = tensors["b2"].detach().half().requires_grad_()
    actual = gradients(fused(tensors).loss, *leaves(tensors))
    expected = gradients(reference.adversary_loss(**tensors).loss, *leaves(tensors))
    for name, one, other in zip(LEAVES, actual, expected, strict=True):
        assert one.dtype == tensors[name].dtype
        assert distance(one, other) <= (2 * FP16_GRADIENT if name == "b2" else FP32_GRADIENT), name


def test_tensors_that_are_not_contiguous() -> None:
    tensors = batch()
    tensors["hidden"] = tensors["hidden"].detach().t().contiguous().t().requires_grad_()
    tensors["w1"] = tensors["w1"].detach().t().contiguous().t().requires_grad_()
    assert_agrees(tensors, reference.adversary_loss(**tensors))


def test_the_graph_can_be_retained() -> None:
    tensors = batch()
    loss = fused(tensors).loss
    once = torch.autograd.grad(loss, leaves(tensors), retain_graph=True)
    twice = torch.autograd.grad(2 * loss, leaves(tensors))
    assert all(torch.equal(2 * one, other) for one, other in zip(once, twice, strict=True))


@pytest.mark.parametrize("frozen", [("hidden",), ("w1", "b2"), LEAVES[1:]])
def test_frozen_tensors_get_no_gradient_and_do_not_change_the_others(frozen: tuple[str, ...]) -> None:
    tensors = batch()
    expected = dict(zip(LEAVES, gradients(fused(tensors).loss, *leaves(tensors)), strict=True))
    tensors |= {name: tensors[name].detach() for name in frozen}
    fused(tensors).loss.backward()
    for name in LEAVES:
        if name in frozen:
            assert tensors[name].grad is None
        else:
            assert_same([tensors[name].grad], [expected[name]], repeats_bits("fused"))


def test_without_gradients_the_results_are_the_same() -> None:
    tensors = batch()
    expected = fused(tensors)
    with torch.no_grad():
        actual = fused(tensors)
    assert not actual.loss.requires_grad
    assert_same(actual, expected, repeats_bits("fused"))


def test_parameters_may_be_replaced_between_the_passes() -> None:
    def run(replace: bool) -> tuple[Tensor, ...]:
        tensors = batch()
        loss = fused(tensors).loss
        if replace:
            for name in LEAVES:
                tensors[name].data = torch.full_like(tensors[name], float("nan"))
        return gradients(loss, *leaves(tensors))

    assert_same(run(True), run(False), repeats_bits("fused"))


def test_reversal_is_read_when_the_loss_is_computed() -> None:
    def run(later: float) -> tuple[Tensor, ...]:
        tensors = batch(reversal=0.3)
        loss = fused(tensors).loss
        tensors["reversal"].fill_(later)
        return gradients(loss, tensors["hidden"])

    assert_same(run(7.0), run(0.3), repeats_bits("fused"))


@pytest.mark.usefixtures("placement")
@pytest.mark.parametrize("level", LEVELS)
def test_bitwise_the_same_from_run_to_run(level: str) -> None:
    def run() -> list[Tensor]:
        tensors = batch()
        output = fused(tensors, level=level, objective="uniform")
        return [output.loss, *gradients(output.loss, *leaves(tensors))]

    assert_same(run(), run(), repeats_bits("fused"))


class _Operations(TorchDispatchMode):
    """Record the names of torch's operations that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if not function.is_view and name not in ("empty", "new_empty", "empty_like", "detach"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_torch_computes_almost_nothing_besides_the_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    from unibert_kernels.fused import adversary

    launched = []
    monkeypatch.setattr(adversary, "launch", lambda kernel, *_, **__: launched.append(kernel.fn.__name__))
    tensors = batch()
    upstream = torch.ones((), device=DEVICE)
    with _Operations() as operations:
        torch.autograd.grad(fused(tensors).loss, leaves(tensors), upstream)
    # Ranges; dW1 and dW2; factors and gradients times upstream.
    assert operations.names == ["zeros", "addmm", "addmm", "mul", "mul"]
    names = ("find_documents", "discriminate", "finish", "hidden_gradient")
    assert launched == [f"{name}_kernel" for name in names]


def test_tensors_that_it_cannot_serve_are_rejected() -> None:
    tensors = batch()
    many = tensors | {"w2": torch.zeros(257, 48, device=DEVICE), "b2": torch.zeros(257, device=DEVICE)}
    with pytest.raises(ValueError, match=r"^path: fused takes up to 256 languages"):
        fused(many)
    assert adversary_loss(**many).count == 19
    with pytest.raises(ValueError, match=r"^path: fused .*fp64"):
        fused(batch(torch.float64))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="for machines without a GPU")
def test_cpu_tensors_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"^path: fused needs CUDA tensors"):
        fused(batch())
