from __future__ import annotations

import pytest
import torch
from torch import Tensor
from unibert_kernels import products


@pytest.mark.parametrize("does", ["adds in fp32", "adds in bf16", "forgets the summand", "raises"])
def test_whether_addmm_adds_halves_to_fp32_is_seen_in_its_result(does: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def addmm(total: Tensor, left: Tensor, right: Tensor, *, out_dtype: torch.dtype, out: Tensor) -> None:
        if does == "raises":
            raise RuntimeError("out_dtype is not supported")
        added = {"adds in fp32": total, "adds in bf16": total.bfloat16().float(), "forgets the summand": 0 * total}[
            does
        ]
        out.copy_(added + left.float() @ right.float())

    products._adds_halves_to_fp32.cache_clear()
    monkeypatch.setattr(torch, "addmm", addmm)
    try:
        assert products._adds_halves_to_fp32(torch.device("cpu"), torch.bfloat16) == (does == "adds in fp32")
    finally:
        products._adds_halves_to_fp32.cache_clear()
