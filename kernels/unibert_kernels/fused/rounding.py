"""Passes over gradients that only round: torch's own take four times as long where dtypes differ.

Suffixes name the dimensions of a tile:

    e  elements of a flat tensor      n  rows      h  columns of hidden
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from unibert_kernels.fused.launch import launch

ELEMENTS = 4096
COLUMNS = 512


@triton.jit
def _scale_kernel(source_ptr, factor_ptr, target_ptr, size, ELEMENTS: tl.constexpr):
    """One block of `scale`."""
    places_e = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside_e = places_e < size
    values_e = tl.load(source_ptr + places_e, mask=inside_e, other=0.0).to(tl.float32) * tl.load(factor_ptr)
    tl.store(target_ptr + places_e, values_e.to(target_ptr.dtype.element_ty), mask=inside_e)


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
    """One block of rows of `round_sums`.

    1. Round the first ``hidden_size`` columns into the weight's gradient.
    2. Copy the next column into the bias's gradient.
    """
    rows_n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside_n = rows_n < num_rows
    sums_n_ptr = sums_ptr + rows_n.to(tl.int64) * width
    # 1. Weight.
    if HAS_WEIGHT:
        weight_n_ptr = weight_ptr + rows_n.to(tl.int64) * hidden_size
        for column in tl.range(0, hidden_size, COLUMNS):
            columns_h = column + tl.arange(0, COLUMNS)
            inside_nh = inside_n[:, None] & (columns_h < hidden_size)[None, :]
            values_nh = tl.load(sums_n_ptr[:, None] + columns_h[None, :], mask=inside_nh)
            weight_nh_ptr = weight_n_ptr[:, None] + columns_h[None, :]
            tl.store(weight_nh_ptr, values_nh.to(weight_ptr.dtype.element_ty), mask=inside_nh)
    # 2. Bias.
    if HAS_BIAS:
        tl.store(bias_ptr + rows_n, tl.load(sums_n_ptr + hidden_size, mask=inside_n), mask=inside_n)


def scale(source: Tensor, factor: Tensor, target: Tensor) -> None:
    """Write ``source`` times ``factor`` (1,) fp32 into ``target``, which may be ``source``: multiplied in fp32, rounded
    once. Both are contiguous and have the same shape."""
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


def round_sums(sums: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """Round the first columns of ``sums`` (V, …) fp32 into ``weight`` (V, H), the next one into ``bias`` (V,)."""
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
