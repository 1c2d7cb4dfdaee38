"""Pieces of kernels that work on tiles of a matrix: loads, stores, and the logits of a linear head.

Arguments of kernels end in ``_ptr`` where they are pointers; a matrix that is loaded or stored by tiles may be a tensor
descriptor instead, see `launch.tile_source`, and has no ending. Sizes: N rows, H ``hidden_size``, V ``vocab_size``;
constants are in capitals.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
"""exp(x) is exp2(x LOG2_E), the one exponential that GPUs have; here the product joins the subtraction of a shift in
one operation."""
LN_2 = tl.constexpr(0.6931471805599453)
OUTSIDE = tl.constexpr(-1e30)
"""A logit beyond the vocabulary: its exponential is 0 at every shift, and unlike infinity it may be multiplied by 0."""


@triton.jit
def load_tile(
    source, row, column, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIPTORS: tl.constexpr
):
    """Tile (ROWS, COLUMNS) at (row, column) of a contiguous matrix, 0 outside; see `launch.tile_source`."""
    if DESCRIPTORS:
        tile = source.load([row, column])
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        tile = tl.load(source + rows.to(tl.int64)[:, None] * num_columns + columns[None, :], mask=inside, other=0.0)
    return tile


@triton.jit
def store_tile(
    target, row, column, num_rows, stride, tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIPTORS: tl.constexpr
):
    """Write ``tile`` at (row, column) of a matrix whose rows are ``stride`` apart and hold whole tiles."""
    if DESCRIPTORS:
        target.store([row, column], tile)
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        pointers = target + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        tl.store(pointers, tile, mask=(rows < num_rows)[:, None])


@triton.jit
def logits_tile(
    states,
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
    """Logits (ROWS, COLUMNS) of states (N, H) and weight (V, H), fp32, `OUTSIDE` beyond the vocabulary; rows beyond the
    last are finite nonsense."""
    logits = tl.zeros((ROWS, COLUMNS), tl.float32)
    # A loop that may not run at all makes ptxas wait for every product before the next (warning C7515).
    tl.assume(hidden_size > 0)
    for depth in tl.range(0, hidden_size, DEPTH):
        x = load_tile(states, row, depth, num_rows, hidden_size, ROWS, DEPTH, DESCRIPTORS)
        w = load_tile(weight, column, depth, vocab_size, hidden_size, COLUMNS, DEPTH, DESCRIPTORS)
        logits = tl.dot(x, w.T, logits, input_precision=PRECISION)
    columns = column + tl.arange(0, COLUMNS)
    # Something is added without a bias too: a selection of each element would cost as much.
    if HAS_BIAS:
        summand = tl.load(bias_ptr + columns, mask=columns < vocab_size, other=OUTSIDE)
    else:
        summand = tl.where(columns < vocab_size, 0.0, OUTSIDE)
    return logits + summand[None, :]


@triton.jit
def maximum_over_splits(maxima_ptr, rows, present, num_rows, splits, ROWS: tl.constexpr):
    """(ROWS,) the largest of each row's entries in ``maxima`` (splits, N)."""
    maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    for split in range(splits):
        maximum = tl.maximum(maximum, tl.load(maxima_ptr + split * num_rows + rows, mask=present, other=0.0))
    return maximum
