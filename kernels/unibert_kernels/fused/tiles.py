"""Building blocks of kernels that work on tiles of a matrix: loads, stores, and the logits of a linear head.

Pointers end in ``_ptr``. A matrix that is read or written by tiles has no such ending, since it may be a tensor
descriptor instead; see `launch.tile_source`. Constants are in capitals. Sizes: N rows, H ``hidden_size``,
V ``vocab_size``. Suffixes name the dimensions of a tile:

    n  rows      v  ids of the vocabulary      h  columns of hidden      c  columns of any matrix
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
"""exp(x) = exp2(x LOG2_E): exp2 is the only exponential that GPUs have, and the factor joins the subtraction of a shift
in one operation."""
LN_2 = tl.constexpr(0.6931471805599453)
OUTSIDE = tl.constexpr(-1e30)
"""A logit beyond the vocabulary: its exponential is 0 at every shift, and unlike infinity it may be multiplied by 0."""


@triton.jit
def load_tile(
    source, row, column, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIPTORS: tl.constexpr
):
    """Tile (ROWS, COLUMNS) at (row, column) of a contiguous matrix, 0 outside; see `launch.tile_source`."""
    if DESCRIPTORS:
        tile_nc = source.load([row, column])
    else:
        rows_n = row + tl.arange(0, ROWS)
        columns_c = column + tl.arange(0, COLUMNS)
        inside_nc = (rows_n < num_rows)[:, None] & (columns_c < num_columns)[None, :]
        source_nc_ptr = source + rows_n.to(tl.int64)[:, None] * num_columns + columns_c[None, :]
        tile_nc = tl.load(source_nc_ptr, mask=inside_nc, other=0.0)
    return tile_nc


@triton.jit
def store_tile(
    target, row, column, num_rows, stride, tile_nc, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIPTORS: tl.constexpr
):
    """Write a tile at (row, column) of a matrix whose rows are ``stride`` apart and hold whole tiles."""
    if DESCRIPTORS:
        target.store([row, column], tile_nc)
    else:
        rows_n = row + tl.arange(0, ROWS)
        columns_c = column + tl.arange(0, COLUMNS)
        target_nc_ptr = target + rows_n.to(tl.int64)[:, None] * stride + columns_c[None, :]
        tl.store(target_nc_ptr, tile_nc, mask=(rows_n < num_rows)[:, None])


@triton.jit
def logits_tile(
    hidden,
    weight,
    bias_ptr,
    row,
    column,
    num_rows,
    vocab_size,
    hidden_size,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """fp32 logits (ROWS, COLUMNS) of hidden (N, H) and weight (V, H), `OUTSIDE` beyond the vocabulary. Rows beyond the
    last hold finite values without meaning.

    1. Sum products over slices of ``DEPTH`` columns of hidden.
    2. Add the bias, or `OUTSIDE`.
    """
    # 1. Product.
    logits_nv = tl.zeros((ROWS, COLUMNS), tl.float32)
    # A loop that may not run at all makes ptxas wait for every product before the next (warning C7515).
    tl.assume(hidden_size > 0)
    for depth in tl.range(0, hidden_size, DEPTH):
        hidden_nh = load_tile(hidden, row, depth, num_rows, hidden_size, ROWS, DEPTH, DESCRIPTORS)
        weight_vh = load_tile(weight, column, depth, vocab_size, hidden_size, COLUMNS, DEPTH, DESCRIPTORS)
        logits_nv = tl.dot(hidden_nh, weight_vh.T, logits_nv, input_precision=PRECISION)

    # 2. Bias. Without one something is added too: a selection of each element would cost as much.
    columns_v = column + tl.arange(0, COLUMNS)
    if HAS_BIAS:
        summand_v = tl.load(bias_ptr + columns_v, mask=columns_v < vocab_size, other=OUTSIDE)
    else:
        summand_v = tl.where(columns_v < vocab_size, 0.0, OUTSIDE)
    return logits_nv + summand_v[None, :]


@triton.jit
def maximum_over_splits(maxima_ptr, rows_n, inside_n, num_rows, splits, ROWS: tl.constexpr):
    """(ROWS,) the largest of each row's entries in ``maxima`` (splits, N)."""
    maxima_n = tl.full((ROWS,), float("-inf"), tl.float32)
    for split in range(splits):
        partial_n = tl.load(maxima_ptr + split * num_rows + rows_n, mask=inside_n, other=0.0)
        maxima_n = tl.maximum(maxima_n, partial_n)
    return maxima_n
