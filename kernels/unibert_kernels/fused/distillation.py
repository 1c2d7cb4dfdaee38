"""`unibert_kernels.distillation` in Triton: a buffer of the teacher's logits connects the two heads.

With shifts c (teacher) and b (student), each row's logit of its label, and logarithms to the base of 2, the kernels
work on

    d = (t - c) log2 e / T        s' = (s - b) log2 e / T        LSE2(x) = log2 Σ_v 2^(x_v)
    kl = ln 2 (Σ_v p_v (d_v - s'_v) - LSE2(d) + LSE2(s'))        p_v = 2^(d_v - LSE2(d))

The shifts change neither softmax and keep the numbers that matter near 0: half precision holds them to 2^-11, and where
teacher and student are the same, the differences are exactly 0.

    1. buffer = d                                                    teacher's product, 2 N H_t V flops
    2. statistics of the rows from s and the buffer                  student's product, 2 N H_s V
    3. buffer = ∂loss/∂s from s and the buffer, in place             student's product again, 2 N H_s V
    4. dX += dZ W, dW += dZᵀ X                                       4 N H_s V

**store-teacher** takes as many rows at a time as the workspace holds with all their logits: steps 1 to 4 once each,
N V (8 H_s + 2 H_t) flops. **recompute** takes a range of columns at a time; it goes over the vocabulary with steps 1
and 2, and again with 1, 3 and 4: N V (8 H_s + 4 H_t) flops. Each step holds one product, whose loads run ahead of it;
two would halve the tiles. The price is the buffer's way to memory and back, 4 bytes per logit and step, against 2 H
flops: less than a product's time from H = 512 on, and hidden behind it.

Suffixes name the dimensions of a tile, as in `tiles`:

    n  rows      v  ids of the vocabulary
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unibert_kernels.arguments import DistillationOptions
from unibert_kernels.fused.configs import TileConfig
from unibert_kernels.fused.head import TRITON_DTYPES, HeadGradients, LinearHead
from unibert_kernels.fused.launch import launch, num_multiprocessors, tile_source
from unibert_kernels.fused.partition import (
    RECOMPUTE_ROWS,
    column_grid,
    column_slices,
    padded_width,
    rounded_rows,
    row_slices,
)
from unibert_kernels.fused.tiles import LN_2, LOG2_E, load_tile, logits_tile, maximum_over_splits, store_tile
from unibert_kernels.linear_head import Head

FINISH_ROWS = 128
"""Rows that a program of `_finish_rows_kernel` takes."""
MAX_HALF = tl.constexpr(60000.0)
"""Bound of |d|, a little below the largest number of fp16. In fp32 it keeps d finite outside the vocabulary, so that d
may be multiplied by 0."""


# Sizes that change with the batch are not specialised: that would recompile kernels in the middle of training.
@triton.jit(do_not_specialize=["num_rows", "tiles", "tiles_per_split"])
def _teacher_kernel(
    hidden,
    weight,
    bias_ptr,
    hidden_size,
    target,
    shifts_ptr,
    inverse_temperature,
    num_rows,
    vocab_size,
    first_column,
    width,
    tiles,
    tiles_per_split,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """d of a block of rows over one split of the columns of ``target`` (N, width).

    1. Load the shifts c.
    2. For each tile of the split:
       2.1 the teacher's logits;
       2.2 d, bounded by `MAX_HALF`;
       2.3 store, rounded.
    """
    # 1. Shifts.
    row = tl.program_id(0) * ROWS
    first = tl.program_id(1) * tiles_per_split
    rows_n = row + tl.arange(0, ROWS)
    shifts_n = tl.load(shifts_ptr + rows_n, mask=rows_n < num_rows, other=0.0)
    factor = inverse_temperature * LOG2_E

    # 2. Tiles.
    for tile in tl.range(first, tl.minimum(first + tiles_per_split, tiles), flatten=True):
        # 2.1 Logits.
        target_column = tile * COLUMNS
        logits_nv = logits_tile(
            hidden,
            weight,
            bias_ptr,
            row,
            first_column + target_column,
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

        # 2.2 d.
        d_nv = (logits_nv - shifts_n[:, None]) * factor
        d_nv = tl.minimum(tl.maximum(d_nv, -MAX_HALF), MAX_HALF)

        # 2.3 Store.
        store_tile(target, row, target_column, num_rows, width, d_nv.to(DTYPE), ROWS, COLUMNS, DESCRIPTORS)


@triton.jit(do_not_specialize=["num_rows", "first_split", "tiles", "tiles_per_split"])
def _statistics_kernel(
    hidden,
    weight,
    bias_ptr,
    hidden_size,
    teacher,
    labels_ptr,
    shifts_ptr,
    inverse_temperature,
    maxima_ptr,
    sums_ptr,
    tempered_sums_ptr,
    teacher_maxima_ptr,
    teacher_sums_ptr,
    expectations_ptr,
    label_logits_ptr,
    num_rows,
    vocab_size,
    first_column,
    width,
    first_split,
    tiles,
    tiles_per_split,
    LABELLED: tl.constexpr,
    TEMPERED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Statistics of a block of rows over one split of the buffer's columns.

    1. Load shifts b and labels.
    2. For each tile of the split:
       2.1 the student's logits s - b;
       2.2 with labels, that of the label, where the tile holds it;
       2.3 running maximum of s - b and Σ exp((s - b - maximum) / T); with labels also Σ exp(s - b - maximum), unless
           that is the same sum;
       2.4 running maximum of d, Σ 2^(d - maximum) and Σ 2^(d - maximum) (d - s').
    3. Store the split's maxima and sums.
    """
    # 1. Shifts and labels.
    row = tl.program_id(0) * ROWS
    split = tl.program_id(1)
    rows_n = row + tl.arange(0, ROWS)
    inside_n = rows_n < num_rows
    shifts_n = tl.load(shifts_ptr + rows_n, mask=inside_n, other=0.0)
    maxima_n = tl.full((ROWS,), float("-inf"), tl.float32)
    sums_n = tl.zeros((ROWS,), tl.float32)
    tempered_sums_n = tl.zeros((ROWS,), tl.float32)
    teacher_maxima_n = tl.full((ROWS,), float("-inf"), tl.float32)
    teacher_sums_n = tl.zeros((ROWS,), tl.float32)
    expectations_n = tl.zeros((ROWS,), tl.float32)
    factor = inverse_temperature * LOG2_E
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    if LABELLED:
        labels_n = tl.load(labels_ptr + rows_n, mask=inside_n, other=-1).to(tl.int32)

    # 2. Tiles.
    for tile in tl.range(first, last, flatten=True):
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
        logits_nv -= shifts_n[:, None]

        # 2.2 The label's logit.
        if LABELLED:
            in_tile_n = (labels_n >= column) & (labels_n < column + COLUMNS)
            # Few tiles hold a label of their rows: the others skip three operations per element.
            if tl.max(in_tile_n.to(tl.int32), 0) > 0:
                columns_v = column + tl.arange(0, COLUMNS)
                is_label_nv = columns_v[None, :] == labels_n[:, None]
                label_logits_n = tl.sum(tl.where(is_label_nv, logits_nv, 0.0), 1)
                tl.store(label_logits_ptr + rows_n, label_logits_n, mask=in_tile_n)

        # 2.3 The student's maximum and sums.
        new_maxima_n = tl.maximum(maxima_n, tl.max(logits_nv, 1))
        if LABELLED and TEMPERED:
            exponents_n = new_maxima_n * LOG2_E
            sums_n *= tl.exp2(maxima_n * LOG2_E - exponents_n)
            sums_n += tl.sum(tl.exp2(logits_nv * LOG2_E - exponents_n[:, None]), 1)
        # Multiplied first, as the teacher's are: where the two are the same, so is every number.
        logits_nv *= factor
        exponents_n = new_maxima_n * factor
        tempered_sums_n *= tl.exp2(maxima_n * factor - exponents_n)
        tempered_sums_n += tl.sum(tl.exp2(logits_nv - exponents_n[:, None]), 1)
        maxima_n = new_maxima_n

        # 2.4 The teacher's maximum, sum and expectation.
        d_nv = load_tile(teacher, row, target_column, num_rows, width, ROWS, COLUMNS, DESCRIPTORS).to(tl.float32)
        new_maxima_n = tl.maximum(teacher_maxima_n, tl.max(d_nv, 1))
        corrections_n = tl.exp2(teacher_maxima_n - new_maxima_n)
        exps_nv = tl.exp2(d_nv - new_maxima_n[:, None])
        teacher_sums_n = teacher_sums_n * corrections_n + tl.sum(exps_nv, 1)
        expectations_n = expectations_n * corrections_n + tl.sum(exps_nv * (d_nv - logits_nv), 1)
        teacher_maxima_n = new_maxima_n

    # 3. Results of the split.
    partials_n = (first_split + split) * num_rows + rows_n
    tl.store(maxima_ptr + partials_n, maxima_n, mask=inside_n)
    tl.store(tempered_sums_ptr + partials_n, tempered_sums_n, mask=inside_n)
    tl.store(teacher_maxima_ptr + partials_n, teacher_maxima_n, mask=inside_n)
    tl.store(teacher_sums_ptr + partials_n, teacher_sums_n, mask=inside_n)
    tl.store(expectations_ptr + partials_n, expectations_n, mask=inside_n)
    if LABELLED:
        tl.store(sums_ptr + partials_n, sums_n if TEMPERED else tempered_sums_n, mask=inside_n)


@triton.jit(do_not_specialize=["num_rows", "splits"])
def _finish_rows_kernel(
    labels_ptr,
    counted_ptr,
    inverse_temperature,
    maxima_ptr,
    sums_ptr,
    tempered_sums_ptr,
    teacher_maxima_ptr,
    teacher_sums_ptr,
    expectations_ptr,
    label_logits_ptr,
    num_rows,
    splits,
    divergences_ptr,
    cross_entropies_ptr,
    hits_ptr,
    log_sums_ptr,
    tempered_log_sums_ptr,
    teacher_log_sums_ptr,
    LABELLED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge the splits of each row; logarithms of sums are to the base of 2.

    1. Maxima of student and teacher over the splits.
    2. Sums over the splits, each relative to the row's maximum. A split without tiles has the maximum -inf, and so no
       weight.
    3. KL, and the logarithms of the tempered sums.
    4. With labels: cross-entropy, hit, and the logarithm of the sum at temperature 1.
    """
    # 1. Maxima.
    rows_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside_n = rows_n < num_rows
    counted_n = tl.load(counted_ptr + rows_n, mask=inside_n, other=0) != 0
    maxima_n = maximum_over_splits(maxima_ptr, rows_n, inside_n, num_rows, splits, BLOCK)
    teacher_maxima_n = maximum_over_splits(teacher_maxima_ptr, rows_n, inside_n, num_rows, splits, BLOCK)

    # 2. Sums.
    factor = inverse_temperature * LOG2_E
    sums_n = tl.zeros((BLOCK,), tl.float32)
    tempered_sums_n = tl.zeros((BLOCK,), tl.float32)
    teacher_sums_n = tl.zeros((BLOCK,), tl.float32)
    expectations_n = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        partials_n = split * num_rows + rows_n
        split_maxima_n = tl.load(maxima_ptr + partials_n, mask=inside_n, other=0.0)
        weights_n = tl.exp2(split_maxima_n * factor - maxima_n * factor)
        tempered_sums_n += tl.load(tempered_sums_ptr + partials_n, mask=inside_n, other=1.0) * weights_n
        if LABELLED:
            weights_n = tl.exp2(split_maxima_n * LOG2_E - maxima_n * LOG2_E)
            sums_n += tl.load(sums_ptr + partials_n, mask=inside_n, other=1.0) * weights_n
        weights_n = tl.exp2(tl.load(teacher_maxima_ptr + partials_n, mask=inside_n, other=0.0) - teacher_maxima_n)
        teacher_sums_n += tl.load(teacher_sums_ptr + partials_n, mask=inside_n, other=1.0) * weights_n
        expectations_n += tl.load(expectations_ptr + partials_n, mask=inside_n, other=0.0) * weights_n

    # 3. KL.
    tempered_log_sums_n = maxima_n * factor + tl.log2(tempered_sums_n)
    teacher_log_sums_n = teacher_maxima_n + tl.log2(teacher_sums_n)
    divergences_n = expectations_n / teacher_sums_n - (teacher_log_sums_n - tempered_log_sums_n)
    tl.store(divergences_ptr + rows_n, tl.where(counted_n, divergences_n * LN_2, 0.0), mask=inside_n)
    tl.store(tempered_log_sums_ptr + rows_n, tempered_log_sums_n, mask=inside_n)
    tl.store(teacher_log_sums_ptr + rows_n, teacher_log_sums_n, mask=inside_n)

    # 4. Cross-entropy and hit.
    if LABELLED:
        known_n = counted_n & (tl.load(labels_ptr + rows_n, mask=inside_n, other=-1) >= 0)
        label_logits_n = tl.load(label_logits_ptr + rows_n, mask=known_n, other=0.0)
        cross_entropies_n = tl.where(known_n, maxima_n + tl.log(sums_n) - label_logits_n, 0.0)
        tl.store(cross_entropies_ptr + rows_n, cross_entropies_n, mask=inside_n)
        tl.store(hits_ptr + rows_n, known_n & (label_logits_n >= maxima_n), mask=inside_n)
        tl.store(log_sums_ptr + rows_n, maxima_n * LOG2_E + tl.log2(sums_n), mask=inside_n)


@triton.jit(do_not_specialize=["num_rows", "tiles", "tiles_per_split"])
def _gradient_kernel(
    hidden,
    weight,
    bias_ptr,
    hidden_size,
    teacher,
    target,
    labels_ptr,
    counted_ptr,
    shifts_ptr,
    inverse_temperature,
    log_sums_ptr,
    tempered_log_sums_ptr,
    teacher_log_sums_ptr,
    kl_factor,
    ce_weight,
    num_rows,
    vocab_size,
    first_column,
    width,
    tiles,
    tiles_per_split,
    WITH_CE: tl.constexpr,
    TEMPERED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """∂loss/∂s of a block of rows over one split of the buffer's columns, in the place of d: ``target`` is ``teacher``
    under another dtype.

    1. Load each row's shift and logarithms of sums.
    2. For each tile of the split:
       2.1 the student's logits s - b;
       2.2 the KL's gradient, from d;
       2.3 with cross-entropy, its gradient too;
       2.4 store, rounded.
    """
    # 1. Shifts and logarithms of sums.
    row = tl.program_id(0) * ROWS
    first = tl.program_id(1) * tiles_per_split
    rows_n = row + tl.arange(0, ROWS)
    inside_n = rows_n < num_rows
    counted_n = tl.load(counted_ptr + rows_n, mask=inside_n, other=0) != 0
    shifts_n = tl.load(shifts_ptr + rows_n, mask=inside_n, other=0.0)
    # In rows that do not count every probability becomes 0.
    tempered_log_sums_n = tl.load(tempered_log_sums_ptr + rows_n, mask=counted_n, other=float("inf"))
    teacher_log_sums_n = tl.load(teacher_log_sums_ptr + rows_n, mask=counted_n, other=float("inf"))
    factor = inverse_temperature * LOG2_E
    kl_weight = kl_factor * inverse_temperature
    if WITH_CE:
        labels_n = tl.load(labels_ptr + rows_n, mask=counted_n, other=-1).to(tl.int32)
        log_sums_n = tl.load(log_sums_ptr + rows_n, mask=counted_n, other=float("inf"))

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
        logits_nv -= shifts_n[:, None]

        # 2.2 KL.
        d_nv = load_tile(teacher, row, target_column, num_rows, width, ROWS, COLUMNS, DESCRIPTORS).to(tl.float32)
        student_p_nv = tl.exp2(logits_nv * factor - tempered_log_sums_n[:, None])
        ds_nv = (student_p_nv - tl.exp2(d_nv - teacher_log_sums_n[:, None])) * kl_weight

        # 2.3 Cross-entropy.
        if WITH_CE:
            if TEMPERED:
                student_p_nv = tl.exp2(logits_nv * LOG2_E - log_sums_n[:, None])
            ds_nv += ce_weight * student_p_nv
            if tl.max(((labels_n >= column) & (labels_n < column + COLUMNS)).to(tl.int32), 0) > 0:
                columns_v = column + tl.arange(0, COLUMNS)
                ds_nv -= tl.where(columns_v[None, :] == labels_n[:, None], ce_weight, 0.0)

        # 2.4 Store.
        store_tile(target, row, target_column, num_rows, width, ds_nv.to(DTYPE), ROWS, COLUMNS, DESCRIPTORS)


def distillation(
    student: Head,
    teacher: Head,
    needs_grad: tuple[bool, ...],
    labels: Tensor | None,
    counted: Tensor,
    options: DistillationOptions,
    path: str,
    max_workspace: int,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
    """As `chunked.distillation`, with ``path`` recompute or store-teacher; ``max_workspace`` bounds the latter's
    buffer, in bytes. Rows' results are fp32, gradients have the dtypes of `head.gradient_dtypes`."""
    student_head, teacher_head = LinearHead.prepare(student), LinearHead.prepare(teacher)
    known_labels = torch.full_like(counted, -1, dtype=torch.int64) if labels is None else labels.where(counted, -1)
    element_size, vocab_size = student_head.hidden.element_size(), student_head.vocab_size
    block = max(
        teacher_head.tile_config("teacher").columns,
        *(student_head.tile_config(kernel).columns for kernel in ("divergence", "divergence_gradient")),
    )
    width = padded_width(slice(0, vocab_size), block)
    stored = path == "store-teacher"
    max_rows = max(1, max_workspace // (width * element_size)) if stored else RECOMPUTE_ROWS
    chunks = row_slices(len(counted), max_rows)
    gradients = HeadGradients(student, needs_grad, student_head, accumulate_rows=len(chunks) > 1)
    divergences = student_head.hidden.new_empty(len(counted), dtype=torch.float32)
    cross_entropies, hits = torch.empty_like(divergences), torch.empty_like(counted)
    with torch.autocast(student_head.hidden.device.type, enabled=False):
        for chunk in chunks:
            num_rows = chunk.stop - chunk.start
            buffer_rows = min(max_rows, rounded_rows(num_rows))
            slices = [slice(0, vocab_size)]
            if not stored:
                slices = column_slices(buffer_rows, element_size, vocab_size, block)
            buffer_shape = buffer_rows, padded_width(slices[0], block)
            rows = _RowChunk(
                student_head.slice_rows(chunk),
                teacher_head.slice_rows(chunk),
                known_labels[chunk],
                counted[chunk],
                labels is not None,
                options,
                student_head.hidden.new_empty(buffer_shape, dtype=_buffer_dtype(student_head))[:num_rows],
            )
            divergences[chunk], cross_entropies[chunk], hits[chunk] = rows.compute_losses(slices)
            if gradients.any_needed:
                rows.accumulate_gradients(gradients, chunk, slices)
    return divergences, cross_entropies, hits, gradients.results()


def _buffer_dtype(linear: LinearHead) -> torch.dtype:
    return torch.float32 if linear.hidden.dtype == torch.float32 else torch.float16


class _RowChunk:
    """A chunk of rows that goes through the four steps of the module's docstring."""

    def __init__(
        self,
        student: LinearHead,
        teacher: LinearHead,
        labels: Tensor,
        counted: Tensor,
        labelled: bool,
        options: DistillationOptions,
        buffer: Tensor,
    ) -> None:
        self.student, self.teacher, self.labels, self.counted = student, teacher, labels, counted
        self.labelled, self.options = labelled, options
        self.shifts, self.teacher_shifts = student.label_logits(labels), teacher.label_logits(labels)
        self.buffer = buffer
        self.buffered_columns: slice | None = None
        self.statistics: dict[str, Tensor] = {}

    def compute_losses(self, slices: list[slice]) -> tuple[Tensor, Tensor, Tensor]:
        """Steps 1 and 2: each row's KL, cross-entropy and hit."""
        config = self.student.tile_config("divergence")
        num_rows = len(self.labels)
        (_, splits), _ = self._grid(config, slices[0])
        names = ("maxima", "sums", "tempered_sums", "teacher_maxima", "teacher_sums", "expectations")
        partials = {f"{name}_ptr": self._per_row(splits * len(slices)) for name in names}
        partials["label_logits_ptr"] = self._per_row()
        for number, columns in enumerate(slices):
            self._buffer_teacher(columns)
            # The last slice may have fewer tiles; its splits without tiles have no weight.
            tiles = triton.cdiv(columns.stop - columns.start, config.columns)
            launch(
                _statistics_kernel,
                (triton.cdiv(num_rows, config.rows), splits),
                **self._student_arguments(config, columns),
                **partials,
                first_split=number * splits,
                tiles=tiles,
                tiles_per_split=triton.cdiv(tiles, splits),
                LABELLED=self.labelled,
            )
        divergences = self._per_row()
        # Without labels no kernel writes these.
        cross_entropies, hits = torch.zeros_like(divergences), torch.zeros_like(self.counted)
        results = ("log_sums_ptr", "tempered_log_sums_ptr", "teacher_log_sums_ptr")
        self.statistics = {name: self._per_row() for name in results}
        launch(
            _finish_rows_kernel,
            (triton.cdiv(num_rows, FINISH_ROWS),),
            labels_ptr=self.labels,
            counted_ptr=self.counted,
            inverse_temperature=1.0 / self.options.temperature,
            **partials,
            num_rows=num_rows,
            splits=splits * len(slices),
            divergences_ptr=divergences,
            cross_entropies_ptr=cross_entropies,
            hits_ptr=hits,
            **self.statistics,
            LABELLED=self.labelled,
            BLOCK=FINISH_ROWS,
        )
        return divergences, cross_entropies, hits

    def accumulate_gradients(self, gradients: HeadGradients, chunk: slice, slices: list[slice]) -> None:
        """Steps 3 and 4, and step 1 again where the buffer holds other columns."""
        config = self.student.tile_config("divergence_gradient")
        gradient = self.buffer.view(self.student.hidden.dtype)
        for columns in slices:
            self._buffer_teacher(columns)
            grid, tiling = self._grid(config, columns)
            launch(
                _gradient_kernel,
                grid,
                **self._student_arguments(config, columns),
                **self.statistics,
                target=tile_source(gradient, config.rows, config.columns, config.descriptors),
                counted_ptr=self.counted,
                kl_factor=float(self.options.kl_factor),
                ce_weight=float(self.options.ce_weight),
                **tiling,
                WITH_CE=self.options.ce_weight != 0,
            )
            self.buffered_columns = None
            gradients.accumulate(chunk, columns, gradient[:, : columns.stop - columns.start])

    def _buffer_teacher(self, columns: slice) -> None:
        """Step 1, unless the buffer holds these columns already."""
        if self.buffered_columns == columns:
            return
        self.buffered_columns = columns
        config = self.teacher.tile_config("teacher")
        constants = self.teacher.constants(config) | {"DTYPE": TRITON_DTYPES[self.buffer.dtype]}
        grid, tiling = self._grid(config, columns)
        launch(
            _teacher_kernel,
            grid,
            **self.teacher.operand_arguments(config),
            target=tile_source(self.buffer, config.rows, config.columns, config.descriptors),
            shifts_ptr=self.teacher_shifts,
            **self._shared_arguments(columns),
            **tiling,
            **constants,
        )

    def _grid(self, config: TileConfig, columns: slice) -> tuple[tuple[int, int], dict[str, Any]]:
        multiprocessors = num_multiprocessors(self.buffer.device)
        return column_grid(len(self.labels), columns.stop - columns.start, config, multiprocessors)

    def _student_arguments(self, config: TileConfig, columns: slice) -> dict[str, Any]:
        return {
            **self.student.operand_arguments(config),
            "teacher": tile_source(self.buffer, config.rows, config.columns, config.descriptors),
            "labels_ptr": self.labels,
            "shifts_ptr": self.shifts,
            **self._shared_arguments(columns),
            "TEMPERED": self.options.temperature != 1,
            **self.student.constants(config),
        }

    def _shared_arguments(self, columns: slice) -> dict[str, Any]:
        return {
            "inverse_temperature": 1.0 / self.options.temperature,
            "num_rows": len(self.labels),
            "vocab_size": self.student.vocab_size,
            "first_column": columns.start,
            "width": self.buffer.shape[1],
        }

    def _per_row(self, *leading: int) -> Tensor:
        return self.buffer.new_empty((*leading, len(self.labels)), dtype=torch.float32)
