from __future__ import annotations

import pytest
import torch
from unibert_kernels.precomputed_gradients import attach_gradients

from .closeness import DEVICE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("retain", [False, True])
def test_a_bf16_gradient_is_scaled_by_the_exact_factor_and_rounded_once(dtype: torch.dtype, retain: bool) -> None:
    leaf = torch.zeros(1000, dtype=dtype, device=DEVICE, requires_grad=True)
    gradient = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.bfloat16)
    exact = gradient.float() / 3  # bf16 cannot represent a third
    loss = attach_gradients(torch.zeros((), device=DEVICE), (leaf,), (gradient.clone(),)) / 3
    (actual,) = torch.autograd.grad(loss, leaf, retain_graph=retain)
    torch.testing.assert_close(actual, exact.to(dtype), rtol=2e-7 if dtype == torch.float32 else 0, atol=0)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_gradient_that_another_pass_needs_is_not_handed_out(factor: float) -> None:
    leaf = torch.zeros(1000, device=DEVICE, requires_grad=True)
    gradient = torch.randn(1000, device=DEVICE)
    loss = attach_gradients(torch.zeros((), device=DEVICE), (leaf,), (gradient.clone(),)) * factor
    for retain in (True, False):
        (actual,) = torch.autograd.grad(loss, leaf, retain_graph=retain)
        assert actual.equal(gradient * factor)
        actual.zero_()
