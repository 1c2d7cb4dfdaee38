from __future__ import annotations

import pytest
import torch
from unibert_kernels.fused import rounding

from .closeness import DEVICE


@pytest.mark.parametrize(("source", "target"), [(torch.float32, torch.float32), (torch.float32, torch.float16)])
@pytest.mark.parametrize("shape", [(5,), (3, 1031), (17, 512)])
def test_scaling_rounds_once(shape: tuple[int, ...], source: torch.dtype, target: torch.dtype) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, source)
    factor = torch.tensor([1 / 3], device=DEVICE)
    out = torch.empty_like(gradient, dtype=target)
    rounding.scale(gradient, factor, out)
    assert torch.equal(out, (gradient * factor).to(target))
    if source == target:
        expected = out.clone()
        rounding.scale(gradient, factor, gradient)
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("hidden_size", [16, 80, 768])
def test_sums_are_split_into_weight_and_bias(hidden_size: int) -> None:
    sums = torch.randn(37, hidden_size + 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    weight, bias = torch.empty(37, hidden_size, device=DEVICE), torch.empty(37, device=DEVICE)
    rounding.round_sums(sums, weight, bias)
    assert torch.equal(weight, sums[:, :hidden_size])
    assert torch.equal(bias, sums[:, hidden_size])
    only_bias = torch.empty(37, device=DEVICE)
    rounding.round_sums(sums, None, only_bias)
    assert torch.equal(only_bias, sums[:, 0])
