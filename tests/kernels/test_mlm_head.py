from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from unibert_kernels import mlm_head_loss, reference
from unibert_kernels.fused import partition

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
FUSED = ("recompute", "exp-store")
PATHS = ("chunked", *FUSED)

every_path = pytest.mark.parametrize("path", PATHS)


def head(
    num_rows: int = 40,
    hidden_size: int = 64,
    vocab_size: int = VOCAB,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden, weight, bias and labels. Logits are of order 3; some rows are ignored, and the last id occurs
    repeatedly."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int, scale: float) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(DEVICE, dtype).requires_grad_()

    labels = torch.randint(0, vocab_size, (num_rows,), generator=generator)
    labels[::5] = vocab_size - 1
    labels[1::7] = -100
    scale = 3 / hidden_size**0.5
    return (
        leaf(num_rows, hidden_size, scale=1.0),
        leaf(vocab_size, hidden_size, scale=scale),
        leaf(vocab_size, scale=2.0),
        labels.to(DEVICE),
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
    options = {name: value for name, value in options.items() if name not in ("path", "max_workspace")}
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
@every_path
def test_loss_and_gradients_agree_with_float64(
    path: str, with_bias: bool, label_smoothing: float, z_loss: float
) -> None:
    hidden, weight, bias, labels = head()
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss, "path": path, "max_workspace": 20 * 1031 * 4}
    assert_agrees(hidden, weight, bias if with_bias else None, labels, **options)


@pytest.mark.usefixtures("tile_loads")
@pytest.mark.parametrize("path", FUSED)
def test_tiles_loaded_by_pointers_and_by_descriptors(path: str) -> None:
    assert_agrees(*head(hidden_size=80), path=path)


@pytest.mark.parametrize("hidden_size", [256, 272, 384, 512, 768])
@every_path
def test_common_hidden_sizes_agree_with_float64(path: str, hidden_size: int) -> None:
    assert_agrees(*head(24, hidden_size), path=path)


@every_path
def test_peaked_logits_agree_with_float64(path: str) -> None:
    hidden, weight, bias, labels = head()
    # Logits up to 300: their fp32 error, 300 * 6e-8 = 2e-5, is a relative error of exp and so of the gradient.
    assert_agrees((hidden * 30).detach().requires_grad_(), weight, bias, labels, tolerance=1e-4, path=path)


@every_path
def test_labels_far_below_the_largest_logit(path: str) -> None:
    hidden, weight, bias, labels = head(hidden_size=64)
    # Every other row has logits 300 apart: exponentials relative to the label's overflow.
    scale = torch.tensor([1.0, 40.0], device=DEVICE).repeat(20)[:, None]
    hidden = (hidden * scale).detach().requires_grad_()
    assert_agrees(hidden, weight, bias, labels, tolerance=1e-4, path=path)
    assert reference.mlm_head_loss(hidden[1::2], weight, labels[1::2], bias).loss > 100


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.skipif(DEVICE.type != "cpu", reason="only CPUs multiply half-precision operands as fp32")
def test_half_precision_error_is_the_rounding_of_the_gradient() -> None:
    assert_agrees(*head(dtype=torch.bfloat16), tolerance=BF16_GRADIENT, path="chunked")


@pytest.mark.skipif(DEVICE.type != "cuda", reason="bf16 needs a GPU: the interpreter does not round correctly")
@pytest.mark.parametrize("hidden_size", [256, 384, 768])
@every_path
def test_bf16_error_is_at_most_twice_that_of_torch(path: str, hidden_size: int) -> None:
    hidden, weight, bias, labels = head(2048, hidden_size, 32_003, dtype=torch.bfloat16)
    actual = mlm_head_loss(hidden, weight, labels, bias, path=path).loss
    eager = torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, weight, bias), labels)
    expected = reference.mlm_head_loss(hidden, weight, labels, bias).loss
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    leaves = hidden, weight, bias
    for got, torchs, wanted in zip(*(gradients(loss, *leaves) for loss in (actual, eager, expected)), strict=True):
        # Twice the error of eager bf16, plus the rounding of the result itself. In norm the logits' gradient, the
        # scaled hidden states and the result each add a bf16 roundoff of 2^-9: 5e-3 covers all three.
        assert (got - wanted).abs().max() <= 2 * (torchs - wanted).abs().max() + 1e-4
        assert distance(got, wanted) <= 5e-3


@pytest.mark.parametrize("path", ["chunked", "recompute"])
def test_a_loss_scale_acts_before_the_gradient_is_rounded_to_fp16(path: str) -> None:
    hidden, weight, _, labels = head(dtype=torch.float16)
    scale = 2.0**14
    actual = gradients(mlm_head_loss(hidden, weight, labels, path=path).loss * scale, hidden, weight)
    expected = gradients(reference.mlm_head_loss(hidden, weight, labels).loss * scale, hidden, weight)
    # Unscaled, most of the weight's gradient lies below fp16's smallest normal number, 6e-5, and keeps few bits.
    # Scaled, the error of an element is at most 2^-11 of itself; the fused path, and CUDA, also round the logits'
    # gradient.
    roundings = 1 if path == "chunked" and DEVICE.type == "cpu" else 2
    assert all(distance(one, other) <= roundings * 2.0**-11 for one, other in zip(actual, expected, strict=True))


def test_exp_store_rejects_fp16() -> None:
    hidden, weight, _, labels = head(dtype=torch.float16)
    with pytest.raises(ValueError, match="path: exp-store needs bf16 or fp32"):
        mlm_head_loss(hidden, weight, labels, path="exp-store")


@pytest.mark.parametrize("num_rows", [0, 4])
@every_path
def test_without_counted_rows_loss_and_gradients_are_zero(path: str, num_rows: int) -> None:
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
        path=path,
    )
    assert output.loss == 0
    assert output.count == 0
    assert output.correct == 0
    assert (output.per_language == 0).all()
    assert all((gradient == 0).all() for gradient in gradients(output.loss, hidden, weight, bias))


@pytest.mark.parametrize("label", [VOCAB, VOCAB + 1, -1, 2**40])
@every_path
def test_a_label_outside_the_vocabulary_makes_loss_and_gradients_nan(path: str, label: int) -> None:
    hidden, weight, bias, labels = head(12)
    languages = torch.arange(12, device=DEVICE) % 3
    labels[4] = label
    output = mlm_head_loss(hidden, weight, labels, bias, lang_ids=languages, num_languages=3, path=path)
    assert output.loss.isnan()
    assert all(gradient.isnan().all() for gradient in gradients(output.loss, hidden, weight, bias))
    assert output.per_language[4 % 3, 0].isnan()


@every_path
@pytest.mark.usefixtures("small_chunks")
def test_per_language_sums_split_the_loss(path: str) -> None:
    hidden, weight, bias, labels = head()
    languages = torch.randint(0, 4, labels.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    languages[labels == -100] = -1  # a row that does not count needs no language
    options: dict[str, Any] = {"lang_ids": languages, "num_languages": 6, "label_smoothing": 0.1, "z_loss": 1e-3}
    actual = mlm_head_loss(hidden, weight, labels, bias, **options, path=path)
    expected = reference.mlm_head_loss(hidden, weight, labels, bias, **options)
    torch.testing.assert_close(actual.per_language.double(), expected.per_language, rtol=FP32_LOSS, atol=0)
    assert (actual.per_language[4:] == 0).all()
    total = actual.per_language[:, 0].sum().item()
    assert total / actual.count.item() == pytest.approx(actual.loss.item(), rel=FP32_LOSS)
    assert actual.per_language[:, 2].sum() == actual.correct


@every_path
def test_hits_are_rows_whose_label_has_the_largest_logit(path: str) -> None:
    weight = torch.eye(16, device=DEVICE)
    labels = torch.tensor([0, 1, 2, -100, 7], device=DEVICE)
    hidden = weight[[0, 1, 3, 0, 7]]
    output = mlm_head_loss(hidden, weight, labels, path=path)
    assert (output.count.item(), output.correct.item()) == (4, 3)


@every_path
def test_only_the_loss_is_differentiable(path: str) -> None:
    hidden, weight, bias, labels = head()
    output = mlm_head_loss(hidden, weight, labels, bias, lang_ids=labels, num_languages=2, path=path)
    assert [tensor.requires_grad for tensor in output] == [True, False, False, False]
    with torch.no_grad():
        assert not mlm_head_loss(hidden, weight, labels, bias, path=path).loss.requires_grad


@every_path
def test_a_frozen_weight_gets_no_gradient(path: str) -> None:
    hidden, weight, bias, labels = head()
    expected = gradients(mlm_head_loss(hidden, weight, labels, bias, path=path).loss, hidden)
    weight.requires_grad_(False)
    loss = mlm_head_loss(hidden, weight, labels, bias, path=path).loss
    loss.backward()
    assert weight.grad is None
    assert_same([hidden.grad], expected, repeats_bits(path))


@pytest.mark.parametrize(
    ("trained", "products"),
    [((), 1), (("hidden",), 2), (("weight",), 2), (("hidden", "weight"), 3)],
)
def test_products_are_computed_only_for_needed_gradients(trained: tuple[str, ...], products: int) -> None:
    hidden, weight, _, labels = head()
    hidden.requires_grad_("hidden" in trained)
    weight.requires_grad_("weight" in trained)
    with FlopCounterMode(display=False) as counter:
        loss = mlm_head_loss(hidden, weight, labels, path="chunked").loss
        if trained:
            loss.backward()
    assert counter.get_total_flops() == products * 2 * hidden.numel() * VOCAB


@every_path
def test_a_weight_tied_to_the_embedding_gets_both_gradients(path: str) -> None:
    _, weight, bias, labels = head()
    ids = torch.arange(len(labels), device=DEVICE) * 3

    def states(embedding: Tensor) -> Tensor:
        return torch.tanh(embedding[ids])

    actual = gradients(mlm_head_loss(states(weight), weight, labels, bias, path=path).loss, weight)
    expected = gradients(reference.mlm_head_loss(states(weight), weight, labels, bias).loss, weight)
    assert distance(actual[0], expected[0]) <= FP32_GRADIENT


@every_path
def test_gradients_of_micro_batches_add_up(path: str) -> None:
    hidden, weight, bias, labels = head()
    for part in (slice(0, 15), slice(15, 40)):
        (mlm_head_loss(hidden[part], weight, labels[part], bias, path=path).loss * 0.5).backward()
    losses = [
        reference.mlm_head_loss(hidden[part], weight, labels[part], bias).loss for part in (slice(15), slice(15, 40))
    ]
    (expected,) = gradients((losses[0] + losses[1]) * 0.5, weight)
    assert distance(weight.grad, expected) <= FP32_GRADIENT


@every_path
def test_a_retained_graph_repeats_its_gradients(path: str) -> None:
    hidden, weight, bias, labels = head()
    loss = mlm_head_loss(hidden, weight, labels, bias, path=path).loss * 3
    first = torch.autograd.grad(loss, (hidden, weight, bias), retain_graph=True)
    copies = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(loss, (hidden, weight, bias))
    assert all(torch.equal(a, b) for a, b in zip(copies, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(copies, first, strict=True))


def test_gradcheck() -> None:
    hidden, weight, bias, labels = head(9, 5, 13, dtype=torch.float64)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return mlm_head_loss(hidden, weight, labels, bias, label_smoothing=0.2, z_loss=0.05).loss

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


@every_path
def test_a_weight_whose_storage_is_replaced_between_the_passes(path: str) -> None:
    hidden, weight, _, labels = head()
    (expected,) = gradients(mlm_head_loss(hidden, weight, labels, path=path).loss, weight)
    parameter = torch.nn.Parameter(weight.detach().clone())
    loss = mlm_head_loss(hidden, parameter, labels, path=path).loss
    parameter.data = torch.empty(0)  # DeepSpeed ZeRO-3 releases the full parameter after the forward pass …
    parameter.data = torch.full_like(weight, torch.nan)  # … and gathers it into new storage before the backward pass
    loss.backward()
    assert_same([parameter.grad], [expected], repeats_bits(path))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="autocast on CUDA does change the operands")
def test_autocast_on_the_cpu_changes_nothing() -> None:
    hidden, weight, bias, labels = head()
    plain = mlm_head_loss(hidden, weight, labels, bias).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = mlm_head_loss(hidden, weight, labels, bias).loss
        low = mlm_head_loss(hidden.bfloat16(), weight, labels, bias).loss
    leaves = hidden, weight, bias
    assert_same([cast, *gradients(cast, *leaves)], [plain, *gradients(plain, *leaves)], repeats_bits("chunked"))
    expected = reference.mlm_head_loss(hidden.bfloat16(), weight, labels, bias).loss
    assert low.item() == pytest.approx(expected.item(), rel=FP32_LOSS)


@every_path
def test_without_gradients_the_results_are_the_same(path: str) -> None:
    hidden, weight, bias, labels = head()
    options: dict[str, Any] = {"lang_ids": labels % 3, "num_languages": 3, "path": path}
    expected = mlm_head_loss(hidden, weight, labels, bias, **options)
    with torch.no_grad():
        actual = mlm_head_loss(hidden, weight, labels, bias, **options)
    # Without gradients exp-store stores nothing and takes the rows' maxima as shifts, as recompute does.
    assert_same(actual, expected, repeats_bits(path) and path != "exp-store")


@pytest.mark.usefixtures("placement")
@every_path
def test_bitwise_the_same_from_run_to_run(path: str) -> None:
    def run() -> list[Tensor]:
        hidden, weight, bias, labels = head()
        output = mlm_head_loss(hidden, weight, labels, bias, lang_ids=labels % 3, num_languages=3, path=path)
        return [output.loss, output.per_language, *gradients(output.loss, hidden, weight, bias)]

    assert_same(run(), run(), repeats_bits(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "fast"}, "path: must be one of auto, chunked, recompute, exp-store"),
        ({"weight": torch.zeros(VOCAB, 3)}, "weight"),
        ({"weight": torch.zeros(0)}, "weight"),
        ({"bias": torch.zeros(3)}, "bias"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels"),
        ({"lang_ids": torch.zeros(40, dtype=torch.int64)}, "lang_ids"),
        ({"lang_ids": torch.zeros(3, dtype=torch.int64), "num_languages": 1}, "lang_ids"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"z_loss": -1.0}, "z_loss"),
    ],
)
def test_invalid_arguments_are_rejected(change: dict[str, Any], message: str) -> None:
    hidden, weight, bias, labels = head()
    with pytest.raises(ValueError, match=f"^{message}"):
        mlm_head_loss(**{"hidden": hidden, "weight": weight, "labels": labels, "bias": bias, **change})


@pytest.mark.parametrize("path", FUSED)
def test_torchs_old_and_new_settings_for_tf32_are_supported(path: str) -> None:
    # In a separate process, since torch rejects the old setting's getter once the new setting was used.
    program = """
import sys, torch
from unibert_kernels import mlm_head_loss
single, half = torch.float32, torch.float16
for setting, dtype in (("none", single), ("tf32", single), ("tf32", half), ("ieee", single)):
    torch.backends.fp32_precision = setting
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, weight = (torch.ones(size, 16, device=device, dtype=dtype, requires_grad=True) for size in (3, 40))
    path = "recompute" if dtype == half else sys.argv[1]
    mlm_head_loss(hidden, weight, torch.zeros(3, dtype=torch.int64, device=device), path=path).loss.backward()
    assert torch.isfinite(weight.grad).all()
"""
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_rounded_rows_have_few_values_and_waste_little() -> None:
    for num_rows in (0, 1, 7, 8, 9, 100, 9_830, 65_537):
        assert num_rows <= partition.rounded_rows(num_rows) <= 1.125 * num_rows
    assert len({partition.rounded_rows(num_rows) for num_rows in range(8_193, 16_385)}) == 8


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("num_rows", [0, 5, 40])
def test_no_gradient_comes_from_memory_that_was_not_written(num_rows: int) -> None:
    *leaves, labels = head(num_rows)
    expected = gradients(mlm_head_loss(*leaves[:2], labels, leaves[2], path="chunked").loss, *leaves)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch then fills new memory with NaN
    try:
        assert new_memory_is_nan()
        actual = gradients(mlm_head_loss(*leaves[:2], labels, leaves[2], path="chunked").loss, *leaves)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def new_memory_is_nan() -> bool:
    return bool(torch.empty(9, device=DEVICE).new_empty(9).isnan().all())


class Shapes(TorchDispatchMode):
    """Keeps the shapes of new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[torch.Size] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = operator(*arguments, **(named or {}))
        if operator.overloadpacket.__name__ == "new_empty":
            self.made.add(result.shape)
        return result


def test_similar_numbers_of_rows_have_buffers_of_one_size() -> None:
    hidden, weight, bias, labels = head(400)
    with Shapes() as shapes:
        for num_rows in (270, 300, 384):
            mlm_head_loss(hidden[:num_rows], weight, labels[:num_rows], bias, path="chunked")
    assert {shape for shape in shapes.made if shape[1:] == (VOCAB,)} == {(384, VOCAB)}


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the CPU's allocator caches nothing")
@pytest.mark.parametrize("path", FUSED)
def test_memory_does_not_grow_with_every_new_number_of_rows(path: str) -> None:
    hidden, weight, _, labels = head(4096, 64, 32_000, dtype=torch.bfloat16)
    reserved = []
    for num_rows in (3850, 3860, 3900, 3950, 4000, 4090):
        mlm_head_loss(hidden[:num_rows], weight, labels[:num_rows], path=path).loss.backward()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] == reserved[0]
