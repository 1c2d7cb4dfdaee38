"""How far two results may lie apart, and how far they do."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tests import odd_offsets

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the losses are tested: kernels are interpreted on the CPU."""
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
the thousand terms that the tests' sums have at most. Sums of halves run in fp32 and are rounded then: two that differ
by a roundoff may come out as neighbours, which in bf16 with its 8 bits lie up to 2^-7 of themselves apart."""


def repeats_bits(path: str) -> bool:
    """Whether the same values give the same bits on ``path`` once more.

    On CUDA the losses promise it. On the CPU torch's products repeat them because its tensors always lie on 64 bytes;
    numpy's, the interpreter's among them, lie on 16, and go to whatever BLAS numpy was built with.
    """
    return (DEVICE.type == "cuda" or path == "chunked") and not odd_offsets.in_use()


def assert_same(actual: Iterable[Tensor | None], expected: Iterable[Tensor | None], bits: bool) -> None:
    """Bit by bit, or up to the order of sums; counts exactly."""
    for got, wanted in zip(actual, expected, strict=True):
        if wanted is None:
            assert got is None
            continue
        assert got is not None
        assert got.dtype == wanted.dtype
        if bits or not wanted.dtype.is_floating_point:
            assert torch.equal(got, wanted)
        else:
            # On CUDA only compiled code and exp-store without gradients order sums anew, those of fp32.
            assert distance(got, wanted) <= (FP32_LOSS if wanted.is_cuda else REORDERED[wanted.dtype])


def distance(actual: Tensor | None, expected: Tensor | None) -> float:
    """Relative Frobenius distance, computed in float64."""
    assert actual is not None
    assert expected is not None
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-300))


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Gradients of ``loss``, leaving the leaves' own ``grad`` alone."""
    return torch.autograd.grad(loss, leaves)
