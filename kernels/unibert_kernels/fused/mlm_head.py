"""`unibert_kernels.mlm_head` in Triton: logits exist only as tiles in registers, their gradient in half precision.

There are two paths. Both compute the gradients together with the loss, as `chunked` does, and both give the same bits
in every run, since every sum has a fixed order.

**recompute** (8 N H V flops), over all rows, then by ranges of columns of the vocabulary:

    1. statistics of the rows: LSE, loss, hit                    logits, 2 N H V
    2. dZ = (1 + 2 ζ LSE) exp(z - LSE) - (1 - ε) onehot - ε / V  logits again, 2 N H V, rounded when they are written
    3. dX += dZ W      dW[columns] = dZᵀ X                       half-precision products, fp32 sums, 4 N H V

Each element of dW is written once, and the buffer of dZ holds N x columns.

**exp-store** (6 N H V flops), by chunks of rows. While the statistics are taken, E = exp(z - c) is written with one
shift c per row, the label's logit. With s = (1 + 2 ζ LSE) exp(c - LSE), and E_y - (1 - ε) / s in the place of the
label's entry E_y, a row of dZ is s E - ε / V:

    1. statistics of the rows, and E                             logits, 2 N H V
    2. E once more for rows whose exponentials overflowed        a launch that otherwise ends at once
    3. LSE, loss, hit, s, and the label's entry of E
    4. dX = s (E W)    dW += Eᵀ (s X)                            4 N H V; ε / V is added last, as two vectors

c is at most the row's maximum, so that no exponential that matters underflows. E overflows only where some logit lies
more than 60 above the label's. The kernel of step 2 finds such rows by their maximum and writes them again with the
maximum as the shift. The host never waits to find out whether there are any.

A row is a hit if its label's logit equals the maximum over the same tiles. Programs that run side by side hold
different rows and the same columns, so that a tile of W is fetched from memory once.

Suffixes name the dimensions of a tile, as in `tiles`:

    n  rows      v  ids of the vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unibert_kernels.arguments import MLMHeadOptions
from unibert_kernels.fused.head import HeadGradients, LinearHead
from unibert_kernels.fused.launch import launch, num_multiprocessors, tile_source
from unibert_kernels.fused.partition import (
    RECOMPUTE_ROWS,
    column_grid,
    column_slices,
    padded_width,
    rounded_rows,
    row_slices,
)
from unibert_kernels.fused.tiles import LOG2_E, logits_tile, maximum_over_splits, store_tile
from unibert_kernels.linear_head import Head

FINISH_ROWS = 128
"""Rows that a program of `_finish_rows_kernel` takes."""

MAX_EXPONENT = tl.constexpr(60.0)
"""Largest exponent that stays stored: exp(60) times any vocabulary is far below the largest number of bf16 and fp32,
3e38 = exp(88.7)."""


# Sizes that change with the batch are not specialised: that would recompile kernels in the middle of training.
@triton.jit(do_not_specialize=["num_rows", "splits", "tiles", "tiles_per_split"])
def _rows_kernel(
    hidden,
    weight,
    bias_ptr,
    hidden_size,
    target,
    target_stride,
    tiles,
    tiles_per_split,
    splits,
    labels_ptr,
    shifts_ptr,
    maxima_ptr,
    sums_ptr,
    label_logits_ptr,
    num_rows,
    vocab_size,
    MODE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Statistics of a block of rows over one split of the vocabulary, in one of three modes:

    statistics: maxima, sums of exp(z - maximum), label logits.
    store:      maxima, sums of exp(z - shift), label logits; exp(z - shift) goes into ``target`` too.
    repair:     sums and ``target`` once more, for rows that `_overflowed` names, with their maximum as the shift.

    Steps:

    1. Load labels and shifts; in mode repair end if no row overflowed.
    2. For each tile of the split:
       2.1 logits;
       2.2 the label's logit, where the tile holds it;
       2.3 running maximum and sum, and the exponentials into ``target``.
    3. Store the split's sums and maxima.
    """
    # 1. Labels and shifts.
    row = tl.program_id(0) * ROWS
    split = tl.program_id(1)
    rows_n = row + tl.arange(0, ROWS)
    inside_n = rows_n < num_rows
    partials_n = split * num_rows + rows_n
    labels_n = tl.load(labels_ptr + rows_n, mask=inside_n, other=-1).to(tl.int32)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    written_n = inside_n
    if MODE != "statistics":
        shifts_n = tl.load(shifts_ptr + rows_n, mask=inside_n, other=0.0)
    if MODE == "repair":
        row_maxima_n = maximum_over_splits(maxima_ptr, rows_n, inside_n, num_rows, splits, ROWS)
        written_n = inside_n & _overflowed(row_maxima_n, shifts_n)
        if tl.max(written_n.to(tl.int32), 0) == 0:
            return
        shifts_n = row_maxima_n

    # 2. Tiles.
    maxima_n = tl.full((ROWS,), float("-inf"), tl.float32)
    sums_n = tl.zeros((ROWS,), tl.float32)
    # Flattened, so that the loads of the next tile are under way while this one's exponentials are taken.
    for tile in tl.range(first, last, flatten=True):
        # 2.1 Logits.
        column = tile * COLUMNS
        logits_nv = logits_tile(
            hidden,
            weight,
            bias_ptr,
            row,
            column,
            num_rows,
            vocab_size,
            hidden_size,
            ROWS,
            COLUMNS,
            DEPTH,
            HAS_BIAS,
            DESCRIPTORS,
            PRECISION,
        )
        columns_v = column + tl.arange(0, COLUMNS)

        # 2.2 The label's logit.
        if MODE != "repair":
            in_tile_n = (labels_n >= column) & (labels_n < column + COLUMNS)
            # Few tiles hold a label of their rows: the others skip three operations per element.
            if tl.max(in_tile_n.to(tl.int32), 0) > 0:
                is_label_nv = columns_v[None, :] == labels_n[:, None]
                label_logits_n = tl.sum(tl.where(is_label_nv, logits_nv, 0.0), 1)
                tl.store(label_logits_ptr + rows_n, label_logits_n, mask=in_tile_n)

        # 2.3 Maximum, sum, exponentials.
        if MODE == "statistics":
            new_maxima_n = tl.maximum(maxima_n, tl.max(logits_nv, 1))
            exponents_n = new_maxima_n * LOG2_E
            sums_n *= tl.exp2(maxima_n * LOG2_E - exponents_n)
            sums_n += tl.sum(tl.exp2(logits_nv * LOG2_E - exponents_n[:, None]), 1)
            maxima_n = new_maxima_n
        else:
            exps_nv = tl.exp2(logits_nv * LOG2_E - shifts_n[:, None] * LOG2_E)
            sums_n += tl.sum(exps_nv, 1)
            if MODE == "store":
                maxima_n = tl.maximum(maxima_n, tl.max(logits_nv, 1))
                store_tile(target, row, column, num_rows, target_stride, exps_nv.to(DTYPE), ROWS, COLUMNS, DESCRIPTORS)
            else:
                target_nv_ptr = target + rows_n.to(tl.int64)[:, None] * target_stride + columns_v[None, :]
                tl.store(target_nv_ptr, exps_nv.to(DTYPE), mask=written_n[:, None])

    # 3. Results of the split.
    tl.store(sums_ptr + partials_n, sums_n, mask=written_n)
    if MODE != "repair":
        tl.store(maxima_ptr + partials_n, maxima_n, mask=inside_n)


@triton.jit
def _overflowed(maxima_n, shifts_n):
    return maxima_n - shifts_n > MAX_EXPONENT


@triton.jit(do_not_specialize=["num_rows", "splits"])
def _finish_rows_kernel(
    labels_ptr,
    shifts_ptr,
    maxima_ptr,
    sums_ptr,
    label_logits_ptr,
    num_rows,
    vocab_size,
    losses_ptr,
    hits_ptr,
    log_sums_ptr,
    scales_ptr,
    exps_ptr,
    exps_stride,
    splits,
    label_smoothing,
    z_loss,
    STORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge the splits of each row.

    1. Maximum of the row, and the shift c that its exponentials have: the maximum unless they are stored.
    2. Sum over the splits; LSE.
    3. Loss and hit; store them and LSE.
    4. ``scales``, the factor of exp(z - c) in the gradient: 1 + 2 ζ LSE, where the gradient's kernel takes LSE for c,
       or s for stored exponentials, whose label's entry is written here.
    """
    # 1. Maximum and shift.
    rows_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside_n = rows_n < num_rows
    labels_n = tl.load(labels_ptr + rows_n, mask=inside_n, other=-1).to(tl.int32)
    counted_n = labels_n >= 0
    label_logits_n = tl.load(label_logits_ptr + rows_n, mask=counted_n, other=0.0)
    maxima_n = maximum_over_splits(maxima_ptr, rows_n, inside_n, num_rows, splits, BLOCK)
    shifts_n = maxima_n
    if STORED:
        label_shifts_n = tl.load(shifts_ptr + rows_n, mask=inside_n, other=0.0)
        shifts_n = tl.where(_overflowed(maxima_n, label_shifts_n), maxima_n, label_shifts_n)

    # 2. Sum, LSE.
    sums_n = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        partials_n = split * num_rows + rows_n
        split_sums_n = tl.load(sums_ptr + partials_n, mask=inside_n, other=1.0)
        if not STORED:
            split_sums_n *= tl.exp(tl.load(maxima_ptr + partials_n, mask=inside_n, other=0.0) - maxima_n)
        sums_n += split_sums_n
    log_sums_n = shifts_n + tl.log(sums_n)

    # 3. Loss, hit, LSE.
    losses_n = log_sums_n - (1.0 - label_smoothing) * label_logits_n + z_loss * log_sums_n * log_sums_n
    tl.store(losses_ptr + rows_n, tl.where(counted_n, losses_n, 0.0), mask=inside_n)
    tl.store(hits_ptr + rows_n, counted_n & (label_logits_n >= maxima_n), mask=inside_n)
    tl.store(log_sums_ptr + rows_n, log_sums_n, mask=inside_n)

    # 4. Scale and the label's entry.
    scales_n = tl.where(counted_n, 1.0 + 2.0 * z_loss * log_sums_n, 0.0)
    if STORED:
        scales_n /= sums_n
        entries_n = tl.exp(label_logits_n - shifts_n) - (1.0 - label_smoothing) / tl.where(counted_n, scales_n, 1.0)
        entries_n_ptr = exps_ptr + rows_n.to(tl.int64) * exps_stride + labels_n
        tl.store(entries_n_ptr, entries_n.to(exps_ptr.dtype.element_ty), mask=counted_n)
    tl.store(scales_ptr + rows_n, scales_n, mask=inside_n)


@triton.jit(do_not_specialize=["num_rows", "tiles", "tiles_per_split"])
def _gradient_kernel(
    hidden,
    weight,
    bias_ptr,
    hidden_size,
    target,
    labels_ptr,
    log_sums_ptr,
    scales_ptr,
    num_rows,
    vocab_size,
    first_column,
    width,
    tiles,
    tiles_per_split,
    label_smoothing,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """∂loss/∂logits without the ε / V, of a block of rows over one split of the columns of ``target`` (N, width).

    1. Load each row's label, LSE and scale.
    2. For each tile of the split:
       2.1 logits;
       2.2 their gradient, with the label's entry where the tile holds it;
       2.3 store, rounded.
    """
    # 1. Labels, LSE, scales.
    row = tl.program_id(0) * ROWS
    first = tl.program_id(1) * tiles_per_split
    rows_n = row + tl.arange(0, ROWS)
    inside_n = rows_n < num_rows
    labels_n = tl.load(labels_ptr + rows_n, mask=inside_n, other=-1).to(tl.int32)
    exponents_n = tl.load(log_sums_ptr + rows_n, mask=inside_n, other=float("inf")) * LOG2_E
    scales_n = tl.load(scales_ptr + rows_n, mask=inside_n, other=0.0)

    # 2. Tiles.
    for tile in tl.range(first, tl.minimum(first + tiles_per_split, tiles), flatten=True):
        # 2.1 Logits.
        target_column = tile * COLUMNS
        column = first_column + target_column
        logits_nv = logits_tile(
            hidden,
            weight,
            bias_ptr,
            row,
            column,
            num_rows,
            vocab_size,
            hidden_size,
            ROWS,
            COLUMNS,
            DEPTH,
            HAS_BIAS,
            DESCRIPTORS,
            PRECISION,
        )

        # 2.2 Gradient.
        dz_nv = scales_n[:, None] * tl.exp2(logits_nv * LOG2_E - exponents_n[:, None])
        if tl.max(((labels_n >= column) & (labels_n < column + COLUMNS)).to(tl.int32), 0) > 0:
            columns_v = column + tl.arange(0, COLUMNS)
            dz_nv -= tl.where(columns_v[None, :] == labels_n[:, None], 1.0 - label_smoothing, 0.0)

        # 2.3 Store.
        store_tile(target, row, target_column, num_rows, width, dz_nv.to(DTYPE), ROWS, COLUMNS, DESCRIPTORS)


def mlm_head(
    head: Head,
    needs_grad: tuple[bool, ...],
    labels: Tensor,
    counted: Tensor,
    options: MLMHeadOptions,
    path: str,
    max_workspace: int,
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """As `chunked.mlm_head`, with ``path`` recompute or exp-store; ``max_workspace`` bounds E, in bytes.

    Row losses are fp32, gradients have the dtypes of `head.gradient_dtypes`.
    """
    linear = LinearHead.prepare(head)
    labels = labels.where(counted, -1)
    stored = path == "exp-store"
    vocabulary = slice(0, linear.vocab_size)
    width = padded_width(vocabulary, linear.tile_config("store").columns)
    max_rows = max(1, max_workspace // (width * linear.hidden.element_size())) if stored else RECOMPUTE_ROWS
    chunks = row_slices(len(labels), max_rows)
    gradients = HeadGradients(head, needs_grad, linear, accumulate_rows=len(chunks) > 1)
    losses = linear.hidden.new_empty(len(labels), dtype=torch.float32)
    hits = torch.empty_like(counted)
    with torch.autocast(linear.hidden.device.type, enabled=False):
        buffer = None
        if stored and gradients.any_needed and chunks:
            buffer = linear.hidden.new_empty((min(max_rows, rounded_rows(chunks[0].stop)), width))
        for chunk in chunks:
            chunk_head = linear.slice_rows(chunk)
            exps = None if buffer is None else buffer[: chunk.stop - chunk.start]
            statistics = _Statistics.compute(chunk_head, labels[chunk], options, exps)
            losses[chunk], hits[chunk] = statistics.losses, statistics.hits
            if exps is not None:
                gradients.accumulate(chunk, vocabulary, exps[:, vocabulary], statistics.scales)
            elif gradients.any_needed:
                _accumulate_by_columns(gradients, chunk, chunk_head, labels[chunk], options, statistics)
        if options.label_smoothing:
            share = options.label_smoothing / linear.vocab_size
            losses -= counted * share * linear.logit_sums()
            gradients.add_to_every_logit(-share, counted)
    return losses, hits, gradients.results()


def _accumulate_by_columns(
    gradients: HeadGradients,
    chunk: slice,
    linear: LinearHead,
    labels: Tensor,
    options: MLMHeadOptions,
    statistics: _Statistics,
) -> None:
    """Accumulate the gradients of the rows ``chunk``, which ``linear`` holds, one buffer of columns after the other."""
    hidden, vocab_size = linear.hidden, linear.vocab_size
    config = linear.tile_config("gradient")
    buffer_rows = rounded_rows(len(hidden))
    slices = column_slices(buffer_rows, hidden.element_size(), vocab_size, config.columns)
    width = padded_width(slices[0], config.columns)
    buffer = hidden.new_empty((buffer_rows, width))[: len(hidden)]
    for columns in slices:
        num_columns = columns.stop - columns.start
        grid, tiling = column_grid(len(hidden), num_columns, config, num_multiprocessors(hidden.device))
        launch(
            _gradient_kernel,
            grid,
            **linear.operand_arguments(config),
            target=tile_source(buffer, config.rows, config.columns, config.descriptors),
            labels_ptr=labels,
            log_sums_ptr=statistics.log_sums,
            scales_ptr=statistics.scales,
            num_rows=len(hidden),
            vocab_size=vocab_size,
            first_column=columns.start,
            width=width,
            **tiling,
            label_smoothing=float(options.label_smoothing),
            **linear.constants(config),
        )
        gradients.accumulate(chunk, columns, buffer[:, :num_columns])


@dataclass(frozen=True)
class _Statistics:
    """Results of a pass over all logits of each row (N,)."""

    losses: Tensor
    hits: Tensor
    log_sums: Tensor
    """LSE."""
    scales: Tensor
    """Factor of exp(z - shift) in the gradient; the shift is LSE, or that of the stored exponentials."""

    @classmethod
    def compute(cls, linear: LinearHead, labels: Tensor, options: MLMHeadOptions, exps: Tensor | None) -> _Statistics:
        """Go over the vocabulary once, and write E into ``exps`` (N, a multiple of a tile's columns) if given."""
        hidden, vocab_size = linear.hidden, linear.vocab_size
        num_rows, stored = len(hidden), exps is not None
        config = linear.tile_config("store" if stored else "statistics")
        grid, tiling = column_grid(num_rows, vocab_size, config, num_multiprocessors(hidden.device))
        _, splits = grid

        def per_row(*leading: int) -> Tensor:
            return hidden.new_empty((*leading, num_rows), dtype=torch.float32)

        result = cls(per_row(), hidden.new_empty(num_rows, dtype=torch.bool), per_row(), per_row())
        shifts = linear.label_logits(labels) if stored else per_row()
        target = exps if exps is not None else hidden
        shared: dict[str, Any] = {
            "labels_ptr": labels,
            "shifts_ptr": shifts,
            "maxima_ptr": per_row(splits),
            "sums_ptr": per_row(splits),
            "label_logits_ptr": per_row(),
            "num_rows": num_rows,
            "vocab_size": vocab_size,
            "splits": splits,
        }
        for mode in ("store", "repair") if stored else ("statistics",):
            launch(
                _rows_kernel,
                grid,
                **linear.operand_arguments(config),
                target=tile_source(target, config.rows, config.columns, config.descriptors and mode == "store"),
                target_stride=target.stride(0),
                **tiling,
                **shared,
                MODE=mode,
                **linear.constants(config),
            )
        launch(
            _finish_rows_kernel,
            (triton.cdiv(num_rows, FINISH_ROWS),),
            **shared,
            losses_ptr=result.losses,
            hits_ptr=result.hits,
            log_sums_ptr=result.log_sums,
            scales_ptr=result.scales,
            exps_ptr=target,
            exps_stride=target.stride(0),
            label_smoothing=float(options.label_smoothing),
            z_loss=float(options.z_loss),
            STORED=stored,
            BLOCK=FINISH_ROWS,
        )
        return result
