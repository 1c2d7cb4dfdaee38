"""Passes over gradients that do nothing but round: torch's own take four times as long where dtypes differ."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from unibert_kernels.fused.launch import launch

ELEMENTS = 4096
COLUMNS = 512


@triton.jit
def _scale_kernel(source_ptr, factor_ptr, target_ptr, size, ELEMENTS: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = places < size
    values = tl.load(source_ptr + places, mask=inside, other=0.0).to(tl.float32) * tl.load(factor_ptr)
    tl.store(target_ptr + places, values.to(target_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def _keep_kernel(
    sums_ptr,
    weight_ptr,
    bias_ptr,
    num_rows,
    hidden_size,
    width,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = rows < num_rows
    sources = sums_ptr + rows.to(tl.int64) * width
    if HAS_WEIGHT:
        targets = weight_ptr + rows.to(tl.int64) * hidden_size
        for column in tl.range(0, hidden_size, COLUMNS):
            columns = column + tl.arange(0, COLUMNS)
            inside = present[:, None] & (columns < hidden_size)[None, :]
            values = tl.load(sources[:, None] + columns[None, :], mask=inside)
            tl.store(targets[:, None] + columns[None, :], values.to(weight_ptr.dtype.element_ty), mask=inside)
    if HAS_BIAS:
        tl.store(bias_ptr + rows, tl.load(sources + hidden_size, mask=present), mask=present)


def scale(source: Tensor, factor: Tensor, target: Tensor) -> None:
    """Write ``source`` times ``factor`` (1,) fp32 into ``target``, which may be ``source``; multiplied in fp32, rounded
    once. Both are contiguous and of one shape."""
    launch(
        _scale_kernel,
        (triton.cdiv(source.numel(), ELEMENTS),),
        source_ptr=source,
        factor_ptr=factor,
        target_ptr=target,
        size=source.numel(),
        ELEMENTS=ELEMENTS,
        num_warps=8,
    )


def keep(sums: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """Round ``sums`` (V, …) fp32 into ``weight`` (V, H), its first columns, and ``bias`` (V,), the next one."""
    num_rows, width = sums.shape
    hidden_size = 0 if weight is None else weight.shape[1]
    launch(
        _keep_kernel,
        (triton.cdiv(num_rows, 16),),
        sums_ptr=sums,
        weight_ptr=sums if weight is None else weight,
        bias_ptr=sums if bias is None else bias,
        num_rows=num_rows,
        hidden_size=hidden_size,
        width=width,
        HAS_WEIGHT=weight is not None,
        HAS_BIAS=bias is not None,
        ROWS=16,
        COLUMNS=min(COLUMNS, triton.next_power_of_2(max(1, hidden_size))),
        num_warps=8,
    )
