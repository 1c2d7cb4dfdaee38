"""Tolerances for two results, and the distance between them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tests import odd_offsets

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Device under test; on the CPU kernels are interpreted."""
FP32_GRADIENT = 1e-5
"""Relative Frobenius error of an fp32 gradient: unit roundoff 6e-8 times the square root of the few thousand terms of
a sum is 4e-6, and errors of the logits (|z| times the roundoff) enter the softmax as relative errors of that size."""
FP32_LOSS = 2e-6
"""Relative error of an fp32 loss of order 10: a few tens of roundoffs of 6e-8."""
BF16_GRADIENT = 2.0**-9
"""bf16 holds 8 bits, so rounding the finished fp32 gradient errs by at most 2^-9 of each element."""

REORDERED = {
    torch.float64: 2.0**-53 * 32,
    torch.float32: 2.0**-24 * 32,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
}
"""Relative Frobenius distance of two results of the same sums in another order: unit roundoff times the square root of
the number of terms, at most a thousand in the tests. Half-precision sums run in fp32 and are rounded at the end: two
that differ by a roundoff may become neighbours, which in bf16 with its 8 bits differ by up to 2^-7 of themselves."""


def repeats_bits(path: str) -> bool:
    """Whether ``path`` gives the same bits for the same values in every run.

    On CUDA the losses guarantee it. On the CPU torch's products repeat their bits because its tensors are always
    aligned to 64 bytes. numpy's arrays, and with them the interpreter's, are aligned to 16 bytes, and their products
    depend on the BLAS that numpy was built with.
    """
    return (DEVICE.type == "cuda" or path == "chunked") and not odd_offsets.in_use()


def assert_same(actual: Iterable[Tensor | None], expected: Iterable[Tensor | None], bits: bool) -> None:
    """Assert equality bit by bit or, without ``bits``, up to the order of sums; integers must be equal either way."""
    for one, other in zip(actual, expected, strict=True):
        if other is None:
            assert one is None
            continue
        assert one is not None
        assert one.dtype == other.dtype
        if bits or not other.dtype.is_floating_point:
            assert torch.equal(one, other)
        else:
            # On CUDA only compiled code and exp-store without gradients change the order of sums, all of them fp32.
            assert distance(one, other) <= (FP32_LOSS if other.is_cuda else REORDERED[other.dtype])


def distance(actual: Tensor | None, expected: Tensor | None) -> float:
    """Relative Frobenius distance, computed in float64."""
    assert actual is not None
    assert expected is not None
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-300))


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Gradients of ``loss``; the leaves' ``grad`` does not change."""
    return torch.autograd.grad(loss, leaves)
