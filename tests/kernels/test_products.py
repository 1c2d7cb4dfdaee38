from __future__ import annotations

import pytest
import torch
from torch import Tensor
from unibert_kernels import products


@pytest.mark.parametrize("behaviour", ["adds in fp32", "adds in bf16", "ignores the summand", "raises"])
def test_whether_addmm_adds_to_fp32_is_decided_by_its_result(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def addmm(total: Tensor, left: Tensor, right: Tensor, *, out_dtype: torch.dtype, out: Tensor) -> None:
        if behaviour == "raises":
            raise RuntimeError("out_dtype is not supported")
        summands = {"adds in fp32": total, "adds in bf16": total.bfloat16().float(), "ignores the summand": 0 * total}
        out.copy_(summands[behaviour] + left.float() @ right.float())

    products._adds_halves_to_fp32.cache_clear()
    monkeypatch.setattr(torch, "addmm", addmm)
    try:
        assert products._adds_halves_to_fp32(torch.device("cpu"), torch.bfloat16) == (behaviour == "adds in fp32")
    finally:
        products._adds_halves_to_fp32.cache_clear()
