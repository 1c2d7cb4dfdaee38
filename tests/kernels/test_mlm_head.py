from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from unibert_kernels import mlm_head_loss, reference

from .closeness import BF16_GRADIENT, FP32_GRADIENT, FP32_LOSS, distance, gradients

VOCAB = 1031  # a prime: a multiple of no tile


def head(
    num_rows: int = 40,
    hidden_size: int = 64,
    vocab_size: int = VOCAB,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden, weight, bias and labels with logits of order 3, some rows ignored, repeated labels and the last id."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int, scale: float) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).requires_grad_()

    labels = torch.randint(0, vocab_size, (num_rows,), generator=generator)
    labels[::5] = vocab_size - 1
    labels[1::7] = -100
    scale = 3 / hidden_size**0.5
    return (
        leaf(num_rows, hidden_size, scale=1.0),
        leaf(vocab_size, hidden_size, scale=scale),
        leaf(vocab_size, scale=2.0),
        labels,
    )


def assert_agrees(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    tolerance: float = FP32_GRADIENT,
    **options: Any,
) -> None:
    leaves = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    actual = mlm_head_loss(hidden, weight, labels, bias, **options)
    expected = reference.mlm_head_loss(hidden, weight, labels, bias, **options)
    assert actual.loss.dtype == torch.float32
    assert actual.loss.item() == pytest.approx(expected.loss.item(), rel=FP32_LOSS)
    assert actual.count == expected.count
    assert actual.correct == expected.correct
    for got, wanted in zip(gradients(actual.loss, *leaves), gradients(expected.loss, *leaves), strict=True):
        assert got.dtype == hidden.dtype
        assert distance(got, wanted) <= tolerance


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_loss_and_gradients_agree_with_float64(with_bias: bool, label_smoothing: float, z_loss: float) -> None:
    hidden, weight, bias, labels = head()
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    assert_agrees(hidden, weight, bias if with_bias else None, labels, **options)


@pytest.mark.parametrize("hidden_size", [256, 384, 512, 768])
def test_usual_hidden_sizes_agree_with_float64(hidden_size: int) -> None:
    assert_agrees(*head(24, hidden_size))


def test_peaked_logits_agree_with_float64() -> None:
    hidden, weight, bias, labels = head()
    # Logits up to 300: their fp32 error, 300 * 6e-8 = 2e-5, is a relative error of exp and so of the gradient.
    assert_agrees((hidden * 30).detach().requires_grad_(), weight, bias, labels, tolerance=1e-4)


@pytest.mark.usefixtures("small_chunks")
def test_half_precision_errs_by_the_rounding_of_the_gradient_alone() -> None:
    assert_agrees(*head(dtype=torch.bfloat16), tolerance=BF16_GRADIENT)


def test_loss_scale_acts_before_the_gradient_is_rounded_to_fp16() -> None:
    hidden, weight, _, labels = head(dtype=torch.float16)
    scale = 2.0**14
    actual = gradients(mlm_head_loss(hidden, weight, labels).loss * scale, hidden, weight)
    expected = gradients(reference.mlm_head_loss(hidden, weight, labels).loss * scale, hidden, weight)
    # Unscaled, most of the weight's gradient lies under fp16's smallest normal number, 6e-5, and keeps few bits.
    # Scaled, an element errs by at most 2^-11 of itself.
    assert all(distance(got, wanted) <= 2.0**-11 for got, wanted in zip(actual, expected, strict=True))


@pytest.mark.usefixtures("small_chunks")
def test_rows_are_gathered_and_their_gradient_scattered() -> None:
    hidden, weight, bias, labels = head(90)
    rows = torch.arange(0, 90, 3)[torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    assert_agrees(hidden, weight, bias, labels[:30], rows=rows)
    (gradient,) = gradients(mlm_head_loss(hidden, weight, labels[:30], rows=rows).loss, hidden)
    others = torch.ones(90, dtype=torch.bool).index_fill(0, rows, False)
    assert (gradient[others] == 0).all()


def test_a_row_named_twice_gets_both_gradients() -> None:
    hidden, weight, bias, labels = head(20)
    assert_agrees(hidden, weight, bias, labels, rows=torch.arange(20) // 2)


@pytest.mark.parametrize("num_rows", [0, 4])
def test_nothing_to_count_gives_zero_loss_and_zero_gradients(num_rows: int) -> None:
    hidden, weight, bias, labels = head(num_rows)
    output = mlm_head_loss(
        hidden,
        weight,
        labels.fill_(-100),
        bias,
        lang_ids=labels + 100,
        num_languages=2,
        label_smoothing=0.1,
        z_loss=0.1,
    )
    assert output.loss == 0
    assert output.count == 0
    assert output.correct == 0
    assert (output.per_language == 0).all()
    assert all((gradient == 0).all() for gradient in gradients(output.loss, hidden, weight, bias))


def test_no_rows_picked_of_many() -> None:
    hidden, weight, _, labels = head(12)
    output = mlm_head_loss(hidden, weight, labels[:0], rows=torch.zeros(0, dtype=torch.int64))
    (gradient,) = gradients(output.loss, hidden)
    assert output.loss == 0
    assert gradient.shape == hidden.shape
    assert (gradient == 0).all()


@pytest.mark.usefixtures("small_chunks")
def test_per_language_sums_split_the_loss() -> None:
    hidden, weight, bias, labels = head()
    languages = torch.randint(0, 4, labels.shape, generator=torch.Generator().manual_seed(2))
    languages[labels == -100] = -1  # a row that does not count may have no language
    options: dict[str, Any] = {"lang_ids": languages, "num_languages": 6, "label_smoothing": 0.1, "z_loss": 1e-3}
    actual = mlm_head_loss(hidden, weight, labels, bias, **options)
    expected = reference.mlm_head_loss(hidden, weight, labels, bias, **options)
    torch.testing.assert_close(actual.per_language.double(), expected.per_language, rtol=FP32_LOSS, atol=0)
    assert (actual.per_language[4:] == 0).all()
    assert actual.per_language[:, 0].sum() / actual.count == pytest.approx(actual.loss.item(), rel=FP32_LOSS)
    assert actual.per_language[:, 2].sum() == actual.correct


def test_hits_are_rows_whose_label_has_the_largest_logit() -> None:
    weight = torch.eye(8)
    labels = torch.tensor([0, 1, 2, -100, 7])
    hidden = torch.eye(8)[[0, 1, 3, 0, 7]]
    output = mlm_head_loss(hidden, weight, labels)
    assert (output.count.item(), output.correct.item()) == (4, 3)


def test_only_the_loss_is_differentiable() -> None:
    hidden, weight, bias, labels = head()
    output = mlm_head_loss(hidden, weight, labels, bias, lang_ids=labels, num_languages=2)
    assert [tensor.requires_grad for tensor in output] == [True, False, False, False]
    with torch.no_grad():
        assert not mlm_head_loss(hidden, weight, labels, bias).loss.requires_grad


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, bias, labels = head()
    expected = gradients(mlm_head_loss(hidden, weight, labels, bias).loss, hidden)
    weight.requires_grad_(False)
    loss = mlm_head_loss(hidden, weight, labels, bias).loss
    loss.backward()
    assert weight.grad is None
    assert torch.equal(hidden.grad, expected[0])


@pytest.mark.parametrize(
    ("trained", "products"),
    [((), 1), (("hidden",), 2), (("weight",), 2), (("hidden", "weight"), 3)],
)
def test_products_are_done_only_for_wanted_gradients(trained: tuple[str, ...], products: int) -> None:
    hidden, weight, _, labels = head()
    hidden.requires_grad_("hidden" in trained)
    weight.requires_grad_("weight" in trained)
    with FlopCounterMode(display=False) as counter:
        loss = mlm_head_loss(hidden, weight, labels).loss
        if trained:
            loss.backward()
    assert counter.get_total_flops() == products * 2 * hidden.numel() * VOCAB


def test_a_weight_tied_to_the_embedding_gets_both_gradients() -> None:
    _, weight, bias, labels = head()
    ids = torch.arange(len(labels)) * 3

    def states(embedding: Tensor) -> Tensor:
        return torch.tanh(embedding[ids])

    actual = gradients(mlm_head_loss(states(weight), weight, labels, bias).loss, weight)
    expected = gradients(reference.mlm_head_loss(states(weight), weight, labels, bias).loss, weight)
    assert distance(actual[0], expected[0]) <= FP32_GRADIENT


def test_gradients_of_micro_batches_add_up() -> None:
    hidden, weight, bias, labels = head()
    for part in (slice(0, 15), slice(15, 40)):
        (mlm_head_loss(hidden[part], weight, labels[part], bias).loss * 0.5).backward()
    losses = [
        reference.mlm_head_loss(hidden[part], weight, labels[part], bias).loss for part in (slice(15), slice(15, 40))
    ]
    (expected,) = gradients((losses[0] + losses[1]) * 0.5, weight)
    assert distance(weight.grad, expected) <= FP32_GRADIENT


def test_a_retained_graph_gives_the_same_gradients_again() -> None:
    hidden, weight, bias, labels = head()
    loss = mlm_head_loss(hidden, weight, labels, bias).loss * 3
    first = torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    again = torch.autograd.grad(loss, (hidden, weight, bias))
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, first, strict=True))


def test_gradcheck() -> None:
    hidden, weight, bias, labels = head(9, 5, 13, dtype=torch.float64)
    rows = torch.tensor([8, 3, 0, 1, 5, 5])

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return mlm_head_loss(hidden, weight, labels[:6], bias, rows=rows, label_smoothing=0.2, z_loss=0.05).loss

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


def test_a_weight_whose_storage_is_swapped_between_the_passes() -> None:
    hidden, weight, _, labels = head()
    (expected,) = gradients(mlm_head_loss(hidden, weight, labels).loss, weight)
    parameter = torch.nn.Parameter(weight.detach().clone())
    loss = mlm_head_loss(hidden, parameter, labels).loss
    parameter.data = torch.empty(0)  # DeepSpeed ZeRO-3 releases the full parameter after the forward pass …
    parameter.data = torch.full_like(weight, torch.nan)  # … and gathers it into new storage before the backward pass
    loss.backward()
    assert torch.equal(parameter.grad, expected)


def test_autocast_on_the_cpu_changes_nothing() -> None:
    hidden, weight, bias, labels = head()
    plain = mlm_head_loss(hidden, weight, labels, bias).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = mlm_head_loss(hidden, weight, labels, bias).loss
        low = mlm_head_loss(hidden.bfloat16(), weight, labels, bias).loss
    assert torch.equal(plain, cast)
    for a, b in zip(gradients(plain, hidden, weight, bias), gradients(cast, hidden, weight, bias), strict=True):
        assert torch.equal(a, b)
    expected = reference.mlm_head_loss(hidden.bfloat16(), weight, labels, bias).loss
    assert low.item() == pytest.approx(expected.item(), rel=FP32_LOSS)


def test_bitwise_the_same_from_run_to_run() -> None:
    def run() -> list[Tensor]:
        hidden, weight, bias, labels = head()
        output = mlm_head_loss(hidden, weight, labels, bias, lang_ids=labels % 3, num_languages=3)
        return [output.loss, output.per_language, *gradients(output.loss, hidden, weight, bias)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "fast"}, "path: must be one of auto, chunked"),
        ({"weight": torch.zeros(VOCAB, 3)}, "weight"),
        ({"weight": torch.zeros(0)}, "weight"),
        ({"bias": torch.zeros(3)}, "bias"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels"),
        ({"rows": torch.zeros(3, dtype=torch.int64)}, "labels"),
        ({"lang_ids": torch.zeros(40, dtype=torch.int64)}, "lang_ids"),
        ({"lang_ids": torch.zeros(3, dtype=torch.int64), "num_languages": 1}, "lang_ids"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"z_loss": -1.0}, "z_loss"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    hidden, weight, bias, labels = head()
    with pytest.raises(ValueError, match=f"^{message}"):
        mlm_head_loss(**{"hidden": hidden, "weight": weight, "labels": labels, "bias": bias, **change})
