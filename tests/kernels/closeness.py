"""How far two results may lie apart, and how far they do."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the losses are tested: kernels are interpreted on the CPU."""
FP32_GRADIENT = 1e-5
"""Relative Frobenius error of an fp32 gradient: unit roundoff 6e-8 times the square root of the few thousand terms of
a sum is 4e-6, and errors of the logits (|z| times the roundoff) enter the softmax as relative errors of that size."""
FP32_LOSS = 2e-6
"""Relative error of an fp32 loss of order 10: a few tens of roundoffs of 6e-8."""
BF16_GRADIENT = 2.0**-9
"""bf16 holds 8 bits, so rounding the finished fp32 gradient errs by at most 2^-9 of each element."""


def distance(actual: Tensor | None, expected: Tensor | None) -> float:
    """Relative Frobenius distance, computed in float64."""
    assert actual is not None
    assert expected is not None
    assert actual.shape == expected.shape
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-300))


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Gradients of ``loss``, leaving the leaves' own ``grad`` alone."""
    return torch.autograd.grad(loss, leaves)
