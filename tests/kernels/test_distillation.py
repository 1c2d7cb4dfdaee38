from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from unibert_kernels import distillation_loss, mlm_head_loss, reference

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

VOCAB = 1031  # a prime: a multiple of no tile
FUSED = ("recompute", "store-teacher")

every_path = pytest.mark.parametrize("path", ["chunked", *FUSED])


def pair(num_rows: int = 40, student_size: int = 48, teacher_size: int = 96, vocab_size: int = VOCAB) -> dict[str, Any]:
    """Student and teacher heads with logits of order 3, and labels of which some are ignored."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(DEVICE).requires_grad_()

    labels = torch.randint(0, vocab_size, (num_rows,), generator=generator)
    labels[1::7] = -100
    return {
        "student_hidden": leaf(num_rows, student_size),
        "student_weight": leaf(vocab_size, student_size, scale=3 / student_size**0.5),
        "student_bias": leaf(vocab_size),
        "teacher_hidden": leaf(num_rows, teacher_size),
        "teacher_weight": leaf(vocab_size, teacher_size, scale=3 / teacher_size**0.5),
        "teacher_bias": leaf(vocab_size),
        "labels": labels.to(DEVICE),
    }


def convert(tensors: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same tensors with heads in ``dtype``."""
    labels = {"labels": tensors["labels"]}
    return {
        name: tensor.detach().to(dtype).requires_grad_() for name, tensor in tensors.items() if name not in labels
    } | labels


def student(tensors: dict[str, Any]) -> list[Tensor]:
    return [tensors[f"student_{name}"] for name in ("hidden", "weight", "bias")]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 2.0},
        {"temperature": 0.5, "scale_by_temperature_squared": False, "kl_weight": 0.7},
        {"temperature": 4.0, "ce_weight": 0.5},
        {"kl_weight": 0.0, "ce_weight": 1.0},
    ],
)
@every_path
def test_loss_and_gradients_agree_with_float64(path: str, options: dict[str, Any]) -> None:
    tensors = pair()
    languages = torch.arange(40, device=DEVICE) % 3
    actual = distillation_loss(**tensors, **options, lang_ids=languages, num_languages=4, path=path)
    expected = reference.distillation_loss(**tensors, **options, lang_ids=languages, num_languages=4)
    for name in ("loss", "kl", "ce", "count", "correct"):
        assert getattr(actual, name).item() == pytest.approx(getattr(expected, name).item(), rel=FP32_LOSS), name
    torch.testing.assert_close(actual.per_language.double(), expected.per_language, rtol=2 * FP32_LOSS, atol=0)
    leaves = student(tensors)
    for got, wanted in zip(gradients(actual.loss, *leaves), gradients(expected.loss, *leaves), strict=True):
        assert distance(got, wanted) <= FP32_GRADIENT


@every_path
def test_without_labels_every_row_counts(path: str) -> None:
    tensors = pair() | {"labels": None}
    actual, expected = distillation_loss(**tensors, path=path), reference.distillation_loss(**tensors)
    assert actual.loss.item() == pytest.approx(expected.loss.item(), rel=FP32_LOSS)
    assert (actual.count, actual.ce, actual.correct) == (40, 0, 0)


@pytest.mark.parametrize("label", [VOCAB, -1])
@every_path
def test_a_label_outside_the_vocabulary_makes_loss_and_gradients_nan(path: str, label: int) -> None:
    tensors = pair()
    tensors["labels"][4] = label
    output = distillation_loss(**tensors, ce_weight=0.5, path=path)
    assert output.loss.isnan()
    assert all(gradient.isnan().all() for gradient in gradients(output.loss, *student(tensors)))


@every_path
def test_cross_entropy_alone_is_the_mlm_head_loss(path: str) -> None:
    tensors = pair()
    actual = distillation_loss(**tensors, kl_weight=0.0, ce_weight=1.0, path=path)
    hidden, weight, bias = student(tensors)
    expected = mlm_head_loss(hidden, weight, tensors["labels"], bias, path="chunked")
    assert actual.correct == expected.correct
    # Same products on same operands; the row losses are divided at different places, a roundoff each.
    assert actual.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@every_path
def test_a_teacher_equal_to_the_student_gives_zero_loss_and_gradients(path: str, temperature: float) -> None:
    tensors = pair()
    for name in ("hidden", "weight", "bias"):
        tensors[f"teacher_{name}"] = tensors[f"student_{name}"].detach().clone()
    output = distillation_loss(**tensors, temperature=temperature, path=path)
    # Exactly zero where torch multiplies on the CPU. A GPU may fuse a product with the following sum for one model and
    # not for the other, and the interpreter's order of sums may depend on addresses: a roundoff of 6e-8 relative to
    # logits of order 10.
    tolerance = 0 if DEVICE.type == "cpu" and repeats_bits(path) else 1e-5
    assert abs(output.kl) <= tolerance
    assert all((gradient.abs() <= tolerance).all() for gradient in gradients(output.loss, *student(tensors)))


@every_path
def test_scaling_by_the_squared_temperature(path: str) -> None:
    tensors = pair()
    scaled = distillation_loss(**tensors, temperature=3.0, path=path)
    plain = distillation_loss(**tensors, temperature=3.0, scale_by_temperature_squared=False, path=path)
    assert_same([scaled.kl], [plain.kl], repeats_bits(path))
    assert scaled.loss.item() == pytest.approx(9 * plain.loss.item(), rel=1e-6)


@every_path
def test_the_teacher_gets_no_gradient(path: str) -> None:
    tensors = pair()
    distillation_loss(**tensors, ce_weight=1.0, path=path).loss.backward()
    assert all(tensors[f"teacher_{name}"].grad is None for name in ("hidden", "weight", "bias"))
    assert all(leaf.grad is not None for leaf in student(tensors))


@pytest.mark.usefixtures("tile_loads", "small_chunks")
@pytest.mark.parametrize("path", FUSED)
def test_tiles_loaded_by_pointers_and_by_descriptors(path: str) -> None:
    tensors, options = pair(), {"temperature": 2.0, "ce_weight": 0.5}
    actual = distillation_loss(**tensors, **options, path=path, max_workspace=20 * VOCAB * 4)
    expected = reference.distillation_loss(**tensors, **options)
    leaves = student(tensors)
    for got, wanted in zip(gradients(actual.loss, *leaves), gradients(expected.loss, *leaves), strict=True):
        assert distance(got, wanted) <= FP32_GRADIENT


@pytest.mark.parametrize("path", FUSED)
def test_half_precision_error_is_the_rounding_of_logits_and_gradients(path: str) -> None:
    tensors = convert(pair(), torch.float16)
    actual = distillation_loss(**tensors, temperature=2.0, ce_weight=0.5, path=path)
    expected = reference.distillation_loss(**tensors, temperature=2.0, ce_weight=0.5)
    # The teacher's logits over T are kept to 2^-11 of themselves. Those that matter are below 8, so the mean error is
    # 8 * 2^-12: p has that relative error, and the loss at most that.
    assert actual.loss.item() == pytest.approx(expected.loss.item(), rel=2e-3)
    leaves = student(tensors)
    scale = 2.0**10
    pairs = zip(gradients(actual.loss * scale, *leaves), gradients(expected.loss * scale, *leaves), strict=True)
    assert all(distance(one, other) <= 2e-3 + 2.0**-10 for one, other in pairs)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="bf16 needs a GPU: the interpreter does not round correctly")
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@every_path
def test_bf16_error_is_at_most_twice_that_of_torch(path: str, temperature: float) -> None:
    tensors = convert(pair(1024, 384, 768, 32_003), torch.bfloat16)
    labels = tensors["labels"]
    actual = distillation_loss(**tensors, temperature=temperature, ce_weight=0.5, path=path).loss
    expected = reference.distillation_loss(**tensors, temperature=temperature, ce_weight=0.5).loss
    logits, teacher = (
        torch.nn.functional.linear(*(tensors[f"{model}_{name}"] for name in ("hidden", "weight", "bias"))).float()
        for model in ("student", "teacher")
    )
    kl = torch.nn.functional.kl_div(
        (logits / temperature).log_softmax(1),
        (teacher.detach() / temperature).log_softmax(1),
        reduction="none",
        log_target=True,
    ).sum(1)
    ce = torch.nn.functional.cross_entropy(logits, labels)
    eager = (kl * (labels >= 0)).sum() / (labels >= 0).sum() * temperature**2 + 0.5 * ce
    assert actual.item() == pytest.approx(expected.item(), rel=2e-3)
    leaves = student(tensors)
    for got, torchs, wanted in zip(*(gradients(loss, *leaves) for loss in (actual, eager, expected)), strict=True):
        assert (got - wanted).abs().max() <= 2 * (torchs - wanted).abs().max() + 1e-4
        assert distance(got, wanted) <= max(5e-3, 2 * distance(torchs, wanted))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="only CPUs multiply half-precision operands as fp32")
def test_a_bfloat16_teacher_and_student() -> None:
    tensors = convert(pair(), torch.bfloat16)
    actual = distillation_loss(**tensors, temperature=2.0)
    expected = reference.distillation_loss(**tensors, temperature=2.0)
    assert actual.loss.item() == pytest.approx(expected.loss.item(), rel=FP32_LOSS)
    leaves = student(tensors)
    for got, wanted in zip(gradients(actual.loss, *leaves), gradients(expected.loss, *leaves), strict=True):
        assert got.dtype == torch.bfloat16
        assert distance(got, wanted) <= BF16_GRADIENT


@pytest.mark.parametrize("num_rows", [0, 4])
@every_path
def test_without_counted_rows_loss_and_gradients_are_zero(path: str, num_rows: int) -> None:
    tensors = pair(num_rows)
    tensors["labels"].fill_(-100)
    output = distillation_loss(**tensors, ce_weight=1.0, path=path)
    assert (output.loss, output.kl, output.ce, output.count) == (0, 0, 0, 0)
    assert all((gradient == 0).all() for gradient in gradients(output.loss, *student(tensors)))


def test_gradcheck() -> None:
    tensors = convert(pair(6, 4, 5, 11), torch.float64)

    def loss(*leaves: Tensor) -> Tensor:
        named = dict(zip(("student_hidden", "student_weight", "student_bias"), leaves, strict=True))
        return distillation_loss(**{**tensors, **named}, temperature=2.0, ce_weight=0.3).loss

    assert torch.autograd.gradcheck(loss, student(tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "fast"}, "path: must be one of auto, chunked, recompute, store-teacher"),
        ({"teacher_weight": torch.zeros(7, 96)}, "teacher_weight"),
        ({"teacher_hidden": torch.zeros(7, 96)}, "teacher_hidden"),
        ({"student_bias": torch.zeros(7)}, "student_bias"),
        ({"labels": torch.zeros(7, dtype=torch.int64)}, "labels"),
        ({"labels": None, "ce_weight": 1.0}, "ce_weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"num_languages": 3}, "lang_ids"),
    ],
)
def test_invalid_arguments_are_rejected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        distillation_loss(**(pair() | change))
