"""`unibert_kernels.mlm_head` in Triton: the logits exist as tiles in registers, their gradient in half precision.

Two ways to the gradient, both computed together with the loss as in `chunked`, and both bitwise the same from run to
run, since every sum has a fixed order:

**recompute** (8 N H V flops). Statistics first, for all rows; then by columns of the vocabulary

    dZ = (1 + 2 ζ LSE) exp(z - LSE) - (1 - ε) onehot - ε / V     logits computed again, rounded as they are written
    dX += dZ W      dW[columns] = dZᵀ X                          products of halves with fp32 sums

so that each element of dW is written once, and the buffer holds N x columns.

**exp-store** (6 N H V flops). By rows: while the statistics are taken, E = exp(z - c) is written with one shift c for
each row, the label's logit. With s = (1 + 2 ζ LSE) exp(c - LSE) and the label's entry of E replaced by
E_y - (1 - ε) / s, a row of dZ is s E - ε / V, and

    dX = s (E W)      dW += Eᵀ (s X)                             the ε / V apart, as two vectors

Since c is at most the row's maximum, nothing underflows that matters, and E overflows only if some logit lies more
than 60 above the label's. A second launch of the same kernel finds such rows by their maximum and writes them again
with the maximum for a shift; its other programs end at once. No row waits for the host to look.

A row's hits are counted where its label's logit equals the maximum of the same tiles. Programs that run side by side
hold different rows and the same columns, so that a tile of W is fetched from memory once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unibert_kernels.fused.head import HeadGradients, LinearHead
from unibert_kernels.fused.launch import launch, multiprocessors_of, tile_source
from unibert_kernels.fused.partition import RECOMPUTE_ROWS, column_grid, column_slices, padded, rounded_rows, row_slices
from unibert_kernels.fused.tiles import LOG2_E, logits_tile, maximum_over_splits, store_tile
from unibert_kernels.linear_head import Head

FINISHED_ROWS = 128

REPAIR_ABOVE = tl.constexpr(60.0)
"""exp(60) times any vocabulary is far below the largest number of bf16 and fp32, 3e38 = exp(88.7)."""


# Sizes that change with the batch are not specialised: that would compile anew in the midst of training.
@triton.jit(do_not_specialize=["num_rows", "splits", "tiles", "tiles_per_split"])
def _rows_kernel(
    states,
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
    """A block of rows over one split of the vocabulary.

    statistics: maxima and sums of exp(z - maximum), label logits.
    store:      the same with sums of exp(z - shift), which go into ``target`` too.
    repair:     sums and ``target`` once more, for rows that `_overflowed` says, with their maximum for a shift.
    """
    row = tl.program_id(0) * ROWS
    split = tl.program_id(1)
    rows = row + tl.arange(0, ROWS)
    present = rows < num_rows
    partial = split * num_rows + rows
    label = tl.load(labels_ptr + rows, mask=present, other=-1).to(tl.int32)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    written = present
    if MODE != "statistics":
        shift = tl.load(shifts_ptr + rows, mask=present, other=0.0)
    if MODE == "repair":
        overall = maximum_over_splits(maxima_ptr, rows, present, num_rows, splits, ROWS)
        written = present & _overflowed(overall, shift)
        if tl.max(written.to(tl.int32), 0) == 0:
            return
        shift = overall

    maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    # Flattened, so that the loads of the next tile are under way while this one's exponentials are taken.
    for tile in tl.range(first, last, flatten=True):
        column = tile * COLUMNS
        logits = logits_tile(
            states,
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
        columns = column + tl.arange(0, COLUMNS)
        if MODE != "repair":
            mine = (label >= column) & (label < column + COLUMNS)
            # Few tiles hold a label of their rows: the others skip three operations an element.
            if tl.max(mine.to(tl.int32), 0) > 0:
                label_logit = tl.sum(tl.where(columns[None, :] == label[:, None], logits, 0.0), 1)
                tl.store(label_logits_ptr + rows, label_logit, mask=mine)
        if MODE == "statistics":
            higher = tl.maximum(maximum, tl.max(logits, 1))
            exponent = higher * LOG2_E
            total *= tl.exp2(maximum * LOG2_E - exponent)
            total += tl.sum(tl.exp2(logits * LOG2_E - exponent[:, None]), 1)
            maximum = higher
        else:
            exps = tl.exp2(logits * LOG2_E - shift[:, None] * LOG2_E)
            total += tl.sum(exps, 1)
            if MODE == "store":
                maximum = tl.maximum(maximum, tl.max(logits, 1))
                store_tile(target, row, column, num_rows, target_stride, exps.to(DTYPE), ROWS, COLUMNS, DESCRIPTORS)
            else:
                places = target + rows.to(tl.int64)[:, None] * target_stride + columns[None, :]
                tl.store(places, exps.to(DTYPE), mask=written[:, None])

    tl.store(sums_ptr + partial, total, mask=written)
    if MODE != "repair":
        tl.store(maxima_ptr + partial, maximum, mask=present)


@triton.jit
def _overflowed(maximum, shift):
    return maximum - shift > REPAIR_ABOVE


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
    smoothing,
    z_loss,
    STORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge the splits of each row. ``scales`` is what exp(z - shift) is multiplied by in the gradient, where the shift
    is LSE itself unless exponentials are stored; these get the label's entry."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = rows < num_rows
    label = tl.load(labels_ptr + rows, mask=present, other=-1).to(tl.int32)
    counts = label >= 0
    label_logit = tl.load(label_logits_ptr + rows, mask=counts, other=0.0)
    maximum = maximum_over_splits(maxima_ptr, rows, present, num_rows, splits, BLOCK)
    shift = maximum
    if STORED:
        fixed = tl.load(shifts_ptr + rows, mask=present, other=0.0)
        shift = tl.where(_overflowed(maximum, fixed), maximum, fixed)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        partial = split * num_rows + rows
        part = tl.load(sums_ptr + partial, mask=present, other=1.0)
        if not STORED:
            part *= tl.exp(tl.load(maxima_ptr + partial, mask=present, other=0.0) - maximum)
        total += part
    log_sum = shift + tl.log(total)
    loss = log_sum - (1.0 - smoothing) * label_logit + z_loss * log_sum * log_sum
    tl.store(losses_ptr + rows, tl.where(counts, loss, 0.0), mask=present)
    tl.store(hits_ptr + rows, counts & (label_logit >= maximum), mask=present)
    tl.store(log_sums_ptr + rows, log_sum, mask=present)
    scale = tl.where(counts, 1.0 + 2.0 * z_loss * log_sum, 0.0)
    if STORED:
        scale /= total
        entry = tl.exp(label_logit - shift) - (1.0 - smoothing) / tl.where(counts, scale, 1.0)
        place = exps_ptr + rows.to(tl.int64) * exps_stride + label
        tl.store(place, entry.to(exps_ptr.dtype.element_ty), mask=counts)
    tl.store(scales_ptr + rows, scale, mask=present)


@triton.jit(do_not_specialize=["num_rows", "tiles", "tiles_per_split"])
def _gradient_kernel(
    states,
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
    smoothing,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """∂loss/∂logits, the ε / V apart, of a block of rows over one split of the columns of ``target`` (N, width)."""
    row = tl.program_id(0) * ROWS
    first = tl.program_id(1) * tiles_per_split
    rows = row + tl.arange(0, ROWS)
    present = rows < num_rows
    label = tl.load(labels_ptr + rows, mask=present, other=-1).to(tl.int32)
    exponent = tl.load(log_sums_ptr + rows, mask=present, other=float("inf")) * LOG2_E
    scale = tl.load(scales_ptr + rows, mask=present, other=0.0)
    for tile in tl.range(first, tl.minimum(first + tiles_per_split, tiles), flatten=True):
        place = tile * COLUMNS
        column = first_column + place
        logits = logits_tile(
            states,
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
        gradient = scale[:, None] * tl.exp2(logits * LOG2_E - exponent[:, None])
        if tl.max(((label >= column) & (label < column + COLUMNS)).to(tl.int32), 0) > 0:
            columns = column + tl.arange(0, COLUMNS)
            gradient -= tl.where(columns[None, :] == label[:, None], 1.0 - smoothing, 0.0)
        store_tile(target, row, place, num_rows, width, gradient.to(DTYPE), ROWS, COLUMNS, DESCRIPTORS)


def mlm_head(
    head: Head,
    wants: tuple[bool, ...],
    rows: Tensor | None,
    labels: Tensor,
    counted: Tensor,
    label_smoothing: float,
    z_loss: float,
    path: str,
    max_workspace: int,
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """As `chunked.mlm_head`, by ``path`` recompute or exp-store; ``max_workspace`` bounds E, in bytes.

    Row losses are fp32, gradients of `head.gradient_dtypes`.
    """
    linear = LinearHead.prepare(head, rows)
    targets = _Targets(labels.where(counted, -1), float(label_smoothing), float(z_loss))
    stored = path == "exp-store"
    vocabulary = slice(0, linear.vocab_size)
    width = padded(vocabulary, linear.tile_config("store").columns)
    most = max(1, max_workspace // (width * linear.states.element_size())) if stored else RECOMPUTE_ROWS
    parts = row_slices(len(labels), most)
    gradients = HeadGradients(head, wants, linear, rows, rows_add_up=len(parts) > 1)
    losses = linear.states.new_empty(len(labels), dtype=torch.float32)
    hits = torch.empty_like(counted)
    with torch.autocast(linear.states.device.type, enabled=False):
        exps = None
        if stored and gradients.wanted and parts:
            exps = linear.states.new_empty((min(most, rounded_rows(parts[0].stop)), width))
        for part in parts:
            some, target = linear.take(part), targets.take(part)
            statistics = _Statistics.of(some, target, None if exps is None else exps[: part.stop - part.start])
            losses[part], hits[part] = statistics.losses, statistics.hits
            if exps is not None:
                gradient = exps[: part.stop - part.start, vocabulary]
                gradients.collect(part, vocabulary, gradient, statistics.scales)
            elif gradients.wanted:
                _collect_by_columns(gradients, part, some, target, statistics)
        if label_smoothing:
            losses -= counted * (label_smoothing / linear.vocab_size) * linear.logit_sums()
            gradients.spread_evenly(-label_smoothing / linear.vocab_size, counted)
    return losses, hits, gradients.results()


@dataclass(frozen=True)
class _Targets:
    """``labels`` (N,), -1 in rows that do not count, and the loss's two factors."""

    labels: Tensor
    smoothing: float
    z_loss: float

    def take(self, rows: slice) -> _Targets:
        return _Targets(self.labels[rows], self.smoothing, self.z_loss)


def _collect_by_columns(
    gradients: HeadGradients, part: slice, linear: LinearHead, targets: _Targets, statistics: _Statistics
) -> None:
    """Collect the gradient of the rows ``part``, whose states ``linear`` holds, a buffer of columns at a time."""
    states, vocab_size = linear.states, linear.vocab_size
    config = linear.tile_config("gradient")
    room = rounded_rows(len(states))
    slices = column_slices(room, states.element_size(), vocab_size, config.columns)
    width = padded(slices[0], config.columns)
    buffer = states.new_empty((room, width))[: len(states)]
    for columns in slices:
        grid, cut = column_grid(len(states), columns.stop - columns.start, config, multiprocessors_of(states.device))
        launch(
            _gradient_kernel,
            grid,
            **linear.sources(config),
            target=tile_source(buffer, config.rows, config.columns, config.descriptors),
            labels_ptr=targets.labels,
            log_sums_ptr=statistics.log_sums,
            scales_ptr=statistics.scales,
            num_rows=len(states),
            vocab_size=vocab_size,
            first_column=columns.start,
            width=width,
            **cut,
            smoothing=targets.smoothing,
            **linear.constants(config),
        )
        gradients.collect(part, columns, buffer[:, : columns.stop - columns.start])


@dataclass(frozen=True)
class _Statistics:
    """What is known of each row (N,) once all its logits have been seen."""

    losses: Tensor
    hits: Tensor
    log_sums: Tensor
    scales: Tensor
    """What exp(z - shift) is multiplied by in the gradient; the shift is LSE, or that of the stored exponentials."""

    @classmethod
    def of(cls, linear: LinearHead, targets: _Targets, exps: Tensor | None = None) -> _Statistics:
        """Go over the vocabulary once, and write E into ``exps`` (N, multiple of a tile's columns) if given."""
        states, vocab_size = linear.states, linear.vocab_size
        num_rows, stored = len(states), exps is not None
        config = linear.tile_config("store" if stored else "statistics")
        grid, cut = column_grid(num_rows, vocab_size, config, multiprocessors_of(states.device))
        _, splits = grid

        def per_row(*leading: int) -> Tensor:
            return states.new_empty((*leading, num_rows), dtype=torch.float32)

        result = cls(per_row(), states.new_empty(num_rows, dtype=torch.bool), per_row(), per_row())
        shifts = linear.label_logits(targets.labels) if stored else per_row()
        target = exps if exps is not None else states
        shared: dict[str, Any] = {
            "labels_ptr": targets.labels,
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
                **linear.sources(config),
                target=tile_source(target, config.rows, config.columns, config.descriptors and mode == "store"),
                target_stride=target.stride(0),
                **cut,
                **shared,
                MODE=mode,
                **linear.constants(config),
            )
        launch(
            _finish_rows_kernel,
            (triton.cdiv(num_rows, FINISHED_ROWS),),
            **shared,
            losses_ptr=result.losses,
            hits_ptr=result.hits,
            log_sums_ptr=result.log_sums,
            scales_ptr=result.scales,
            exps_ptr=target,
            exps_stride=target.stride(0),
            smoothing=targets.smoothing,
            z_loss=targets.z_loss,
            STORED=stored,
            BLOCK=FINISHED_ROWS,
        )
        return result
