"""`unibert_kernels.distillation` in Triton: a buffer of the teacher's logits stands between one head and the other.

With shifts c (teacher) and b (student), each row's logit of its label, and logarithms to the base of 2, the kernels
work on

    d = (t - c) log2 e / T        s' = (s - b) log2 e / T        LSE2(x) = log2 Σ_v 2^(x_v)
    kl = ln 2 (Σ_v p_v (d_v - s'_v) - LSE2(d) + LSE2(s'))        p_v = 2^(d_v - LSE2(d))

which changes neither softmax and keeps the numbers that matter near 0: half precision holds them to 2^-11, and where
teacher and student are the same the differences are exactly 0.

    1. buffer = d                                                    teacher's product, 2 N H_t V flops
    2. statistics of the rows from s and the buffer                  student's product, 2 N H_s V
    3. buffer = ∂loss/∂s from s and the buffer, in place             student's product again, 2 N H_s V
    4. dX += dZ W, dW += dZᵀ X                                       4 N H_s V

**store-teacher** takes as many rows at a time as the workspace holds with all their logits: steps 1 to 4 once each,
N V (8 H_s + 2 H_t) flops. **recompute** takes a range of columns at a time, goes over the vocabulary with steps 1 and
2, and again with 1, 3 and 4: N V (8 H_s + 4 H_t) flops. A step holds one product, whose loads run ahead of it, rather
than two, which would halve the tiles; the price is the buffer's way to memory and back, 4 bytes a logit and step,
against 2 H flops: less than a product's time from H = 512 on, and hidden behind it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unibert_kernels.fused.configs import TileConfig
from unibert_kernels.fused.head import TRITON_DTYPES, HeadGradients, LinearHead
from unibert_kernels.fused.launch import launch, multiprocessors_of, tile_source
from unibert_kernels.fused.partition import RECOMPUTE_ROWS, column_grid, column_slices, padded, rounded_rows, row_slices
from unibert_kernels.fused.tiles import LN_2, LOG2_E, load_tile, logits_tile, maximum_over_splits, store_tile
from unibert_kernels.linear_head import Head

FINISHED_ROWS = 128
MAX_HALF = tl.constexpr(60000.0)
"""Beyond it fp16 ends soon; in fp32, too, d is finite outside the vocabulary, so that it may be multiplied by 0."""


# Sizes that change with the batch are not specialised: that would compile anew in the midst of training.
@triton.jit(do_not_specialize=["num_rows", "tiles", "tiles_per_split"])
def _teacher_kernel(
    states,
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
    """d of a block of rows over one split of the columns of ``target`` (N, width)."""
    row = tl.program_id(0) * ROWS
    first = tl.program_id(1) * tiles_per_split
    rows = row + tl.arange(0, ROWS)
    shift = tl.load(shifts_ptr + rows, mask=rows < num_rows, other=0.0)
    factor = inverse_temperature * LOG2_E
    for tile in tl.range(first, tl.minimum(first + tiles_per_split, tiles), flatten=True):
        place = tile * COLUMNS
        logits = logits_tile(
            states,
            weight,
            bias_ptr,
            row,
            first_column + place,
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
        logits = (logits - shift[:, None]) * factor
        logits = tl.minimum(tl.maximum(logits, -MAX_HALF), MAX_HALF)
        store_tile(target, row, place, num_rows, width, logits.to(DTYPE), ROWS, COLUMNS, DESCRIPTORS)


@triton.jit(do_not_specialize=["num_rows", "first_split", "tiles", "tiles_per_split"])
def _statistics_kernel(
    states,
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
    """A block of rows over one split of the buffer's columns: of s - b its maximum and Σ exp((s - b - maximum) / T); of
    d its maximum, Σ 2^(d - maximum) and Σ 2^(d - maximum) (d - s'). For rows with labels also s - b of the label, and
    Σ exp(s - b - maximum) unless that is the sum above."""
    row = tl.program_id(0) * ROWS
    split = tl.program_id(1)
    rows = row + tl.arange(0, ROWS)
    present = rows < num_rows
    shift = tl.load(shifts_ptr + rows, mask=present, other=0.0)
    maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    tempered = tl.zeros((ROWS,), tl.float32)
    teacher_maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    teacher_total = tl.zeros((ROWS,), tl.float32)
    expectation = tl.zeros((ROWS,), tl.float32)
    factor = inverse_temperature * LOG2_E
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    if LABELLED:
        label = tl.load(labels_ptr + rows, mask=present, other=-1).to(tl.int32)
    for tile in tl.range(first, last, flatten=True):
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
        logits -= shift[:, None]
        if LABELLED:
            mine = (label >= column) & (label < column + COLUMNS)
            # Few tiles hold a label of their rows: the others skip three operations an element.
            if tl.max(mine.to(tl.int32), 0) > 0:
                columns = column + tl.arange(0, COLUMNS)
                label_logit = tl.sum(tl.where(columns[None, :] == label[:, None], logits, 0.0), 1)
                tl.store(label_logits_ptr + rows, label_logit, mask=mine)
        higher = tl.maximum(maximum, tl.max(logits, 1))
        if LABELLED and TEMPERED:
            exponent = higher * LOG2_E
            total *= tl.exp2(maximum * LOG2_E - exponent)
            total += tl.sum(tl.exp2(logits * LOG2_E - exponent[:, None]), 1)
        # Multiplied first, as the teacher's are: where the two are the same, so is every number.
        logits *= factor
        exponent = higher * factor
        tempered *= tl.exp2(maximum * factor - exponent)
        tempered += tl.sum(tl.exp2(logits - exponent[:, None]), 1)
        maximum = higher

        taught = load_tile(teacher, row, place, num_rows, width, ROWS, COLUMNS, DESCRIPTORS).to(tl.float32)
        higher = tl.maximum(teacher_maximum, tl.max(taught, 1))
        correction = tl.exp2(teacher_maximum - higher)
        exps = tl.exp2(taught - higher[:, None])
        teacher_total = teacher_total * correction + tl.sum(exps, 1)
        expectation = expectation * correction + tl.sum(exps * (taught - logits), 1)
        teacher_maximum = higher

    partial = (first_split + split) * num_rows + rows
    tl.store(maxima_ptr + partial, maximum, mask=present)
    tl.store(tempered_sums_ptr + partial, tempered, mask=present)
    tl.store(teacher_maxima_ptr + partial, teacher_maximum, mask=present)
    tl.store(teacher_sums_ptr + partial, teacher_total, mask=present)
    tl.store(expectations_ptr + partial, expectation, mask=present)
    if LABELLED:
        tl.store(sums_ptr + partial, total if TEMPERED else tempered, mask=present)


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
    """Merge the splits of each row; logarithms of sums are to the base of 2. A split that no tile fell to has -inf for
    a maximum, and so no weight."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = rows < num_rows
    counts = tl.load(counted_ptr + rows, mask=present, other=0) != 0
    maximum = maximum_over_splits(maxima_ptr, rows, present, num_rows, splits, BLOCK)
    teacher_maximum = maximum_over_splits(teacher_maxima_ptr, rows, present, num_rows, splits, BLOCK)
    factor = inverse_temperature * LOG2_E
    total = tl.zeros((BLOCK,), tl.float32)
    tempered = tl.zeros((BLOCK,), tl.float32)
    teacher_total = tl.zeros((BLOCK,), tl.float32)
    expectation = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        partial = split * num_rows + rows
        part = tl.load(maxima_ptr + partial, mask=present, other=0.0)
        weight = tl.exp2(part * factor - maximum * factor)
        tempered += tl.load(tempered_sums_ptr + partial, mask=present, other=1.0) * weight
        if LABELLED:
            weight = tl.exp2(part * LOG2_E - maximum * LOG2_E)
            total += tl.load(sums_ptr + partial, mask=present, other=1.0) * weight
        weight = tl.exp2(tl.load(teacher_maxima_ptr + partial, mask=present, other=0.0) - teacher_maximum)
        teacher_total += tl.load(teacher_sums_ptr + partial, mask=present, other=1.0) * weight
        expectation += tl.load(expectations_ptr + partial, mask=present, other=0.0) * weight
    tempered_log_sum = maximum * factor + tl.log2(tempered)
    teacher_log_sum = teacher_maximum + tl.log2(teacher_total)
    divergence = expectation / teacher_total - (teacher_log_sum - tempered_log_sum)
    tl.store(divergences_ptr + rows, tl.where(counts, divergence * LN_2, 0.0), mask=present)
    tl.store(tempered_log_sums_ptr + rows, tempered_log_sum, mask=present)
    tl.store(teacher_log_sums_ptr + rows, teacher_log_sum, mask=present)
    if LABELLED:
        known = counts & (tl.load(labels_ptr + rows, mask=present, other=-1) >= 0)
        label_logit = tl.load(label_logits_ptr + rows, mask=known, other=0.0)
        tl.store(cross_entropies_ptr + rows, tl.where(known, maximum + tl.log(total) - label_logit, 0.0), mask=present)
        tl.store(hits_ptr + rows, known & (label_logit >= maximum), mask=present)
        tl.store(log_sums_ptr + rows, maximum * LOG2_E + tl.log2(total), mask=present)


@triton.jit(do_not_specialize=["num_rows", "tiles", "tiles_per_split"])
def _gradient_kernel(
    states,
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
    """∂loss/∂s of a block of rows over one split of the buffer's columns, in place of the teacher's, ``target`` being
    ``teacher`` under another dtype."""
    row = tl.program_id(0) * ROWS
    first = tl.program_id(1) * tiles_per_split
    rows = row + tl.arange(0, ROWS)
    present = rows < num_rows
    counts = tl.load(counted_ptr + rows, mask=present, other=0) != 0
    shift = tl.load(shifts_ptr + rows, mask=present, other=0.0)
    # Rows that do not count are infinitely improbable.
    tempered_log_sum = tl.load(tempered_log_sums_ptr + rows, mask=counts, other=float("inf"))
    teacher_log_sum = tl.load(teacher_log_sums_ptr + rows, mask=counts, other=float("inf"))
    factor = inverse_temperature * LOG2_E
    kl_weight = kl_factor * inverse_temperature
    if WITH_CE:
        label = tl.load(labels_ptr + rows, mask=counts, other=-1).to(tl.int32)
        log_sum = tl.load(log_sums_ptr + rows, mask=counts, other=float("inf"))
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
        logits -= shift[:, None]
        taught = load_tile(teacher, row, place, num_rows, width, ROWS, COLUMNS, DESCRIPTORS).to(tl.float32)
        learnt = tl.exp2(logits * factor - tempered_log_sum[:, None])
        gradient = (learnt - tl.exp2(taught - teacher_log_sum[:, None])) * kl_weight
        if WITH_CE:
            if TEMPERED:
                learnt = tl.exp2(logits * LOG2_E - log_sum[:, None])
            gradient += ce_weight * learnt
            if tl.max(((label >= column) & (label < column + COLUMNS)).to(tl.int32), 0) > 0:
                columns = column + tl.arange(0, COLUMNS)
                gradient -= tl.where(columns[None, :] == label[:, None], ce_weight, 0.0)
        store_tile(target, row, place, num_rows, width, gradient.to(DTYPE), ROWS, COLUMNS, DESCRIPTORS)


def distillation(
    student: Head,
    teacher: Head,
    wants: tuple[bool, ...],
    labels: Tensor | None,
    counted: Tensor,
    temperature: float,
    kl_factor: float,
    ce_weight: float,
    path: str,
    max_workspace: int,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
    """As `chunked.distillation`, by ``path`` recompute or store-teacher; ``max_workspace`` bounds the latter's buffer,
    in bytes. Rows' results are fp32, gradients of `head.gradient_dtypes`."""
    linear, teacher_linear = LinearHead.prepare(student), LinearHead.prepare(teacher)
    targets = torch.full_like(counted, -1, dtype=torch.int64) if labels is None else labels.where(counted, -1)
    element_size, vocab_size = linear.states.element_size(), linear.vocab_size
    block = max(
        teacher_linear.tile_config("teacher").columns,
        *(linear.tile_config(kernel).columns for kernel in ("divergence", "divergence_gradient")),
    )
    width = padded(slice(0, vocab_size), block)
    stored = path == "store-teacher"
    fitting = max(1, max_workspace // (width * element_size)) if stored else RECOMPUTE_ROWS
    parts = row_slices(len(targets), fitting)
    gradients = HeadGradients(student, wants, linear, None, rows_add_up=len(parts) > 1)
    divergences = linear.states.new_empty(len(targets), dtype=torch.float32)
    cross_entropies, hits = torch.empty_like(divergences), torch.empty_like(counted)
    with torch.autocast(linear.states.device.type, enabled=False):
        for part in parts:
            most = part.stop - part.start
            room = min(fitting, rounded_rows(most))
            everything = [slice(0, vocab_size)]
            slices = everything if stored else column_slices(room, element_size, vocab_size, block)
            buffer = linear.states.new_empty((room, padded(slices[0], block)), dtype=_buffer_dtype(linear))
            rows = _Rows(
                linear.take(part),
                teacher_linear.take(part),
                targets[part],
                counted[part],
                labels is not None,
                temperature,
                buffer[:most],
            )
            divergences[part], cross_entropies[part], hits[part] = rows.measure(slices)
            if gradients.wanted:
                rows.collect(gradients, part, slices, kl_factor, ce_weight)
    return divergences, cross_entropies, hits, gradients.results()


def _buffer_dtype(linear: LinearHead) -> torch.dtype:
    return torch.float32 if linear.states.dtype == torch.float32 else torch.float16


class _Rows:
    """Some rows on their way through the four steps."""

    def __init__(
        self,
        student: LinearHead,
        teacher: LinearHead,
        labels: Tensor,
        counted: Tensor,
        labelled: bool,
        temperature: float,
        buffer: Tensor,
    ) -> None:
        self.student, self.teacher, self.labels, self.counted = student, teacher, labels, counted
        self.labelled = labelled
        self.inverse_temperature, self.tempered = 1.0 / temperature, temperature != 1
        self.shifts, self.teacher_shifts = student.label_logits(labels), teacher.label_logits(labels)
        self.buffer = buffer
        self.held: slice | None = None
        self.statistics: dict[str, Tensor] = {}

    def measure(self, slices: list[slice]) -> tuple[Tensor, Tensor, Tensor]:
        """Steps 1 and 2: each row's KL, cross-entropy and hit."""
        config = self.student.tile_config("divergence")
        num_rows = len(self.labels)
        (_, splits), _ = self._grid(config, slices[0])
        names = ("maxima", "sums", "tempered_sums", "teacher_maxima", "teacher_sums", "expectations")
        # A split that no tile falls to, among the last columns, counts for nothing.
        partials = {f"{name}_ptr": self._per_row(splits * len(slices)) for name in names}
        partials["label_logits_ptr"] = self._per_row()
        for number, columns in enumerate(slices):
            self._hold(columns)
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
        # Without labels nobody writes these.
        cross_entropies, hits = torch.zeros_like(divergences), torch.zeros_like(self.counted)
        results = ("log_sums_ptr", "tempered_log_sums_ptr", "teacher_log_sums_ptr")
        self.statistics = {name: self._per_row() for name in results}
        launch(
            _finish_rows_kernel,
            (triton.cdiv(num_rows, FINISHED_ROWS),),
            labels_ptr=self.labels,
            counted_ptr=self.counted,
            inverse_temperature=self.inverse_temperature,
            **partials,
            num_rows=num_rows,
            splits=splits * len(slices),
            divergences_ptr=divergences,
            cross_entropies_ptr=cross_entropies,
            hits_ptr=hits,
            **self.statistics,
            LABELLED=self.labelled,
            BLOCK=FINISHED_ROWS,
        )
        return divergences, cross_entropies, hits

    def collect(
        self, gradients: HeadGradients, part: slice, slices: list[slice], kl_factor: float, ce_weight: float
    ) -> None:
        """Steps 1, where the buffer holds other columns, 3 and 4."""
        config = self.student.tile_config("divergence_gradient")
        gradient = self.buffer.view(self.student.states.dtype)
        for columns in slices:
            self._hold(columns)
            grid, cut = self._grid(config, columns)
            launch(
                _gradient_kernel,
                grid,
                **self._student_arguments(config, columns),
                **self.statistics,
                target=tile_source(gradient, config.rows, config.columns, config.descriptors),
                counted_ptr=self.counted,
                kl_factor=float(kl_factor),
                ce_weight=float(ce_weight),
                **cut,
                WITH_CE=ce_weight != 0,
            )
            self.held = None
            gradients.collect(part, columns, gradient[:, : columns.stop - columns.start])

    def _hold(self, columns: slice) -> None:
        """Step 1, unless the buffer has these columns."""
        if self.held == columns:
            return
        self.held = columns
        config = self.teacher.tile_config("teacher")
        options = self.teacher.constants(config) | {"DTYPE": TRITON_DTYPES[self.buffer.dtype]}
        grid, cut = self._grid(config, columns)
        launch(
            _teacher_kernel,
            grid,
            **self.teacher.sources(config),
            target=tile_source(self.buffer, config.rows, config.columns, config.descriptors),
            shifts_ptr=self.teacher_shifts,
            **self._places(columns),
            **cut,
            **options,
        )

    def _grid(self, config: TileConfig, columns: slice) -> tuple[tuple[int, int], dict[str, Any]]:
        return column_grid(
            len(self.labels), columns.stop - columns.start, config, multiprocessors_of(self.buffer.device)
        )

    def _student_arguments(self, config: TileConfig, columns: slice) -> dict[str, Any]:
        return {
            **self.student.sources(config),
            "teacher": tile_source(self.buffer, config.rows, config.columns, config.descriptors),
            "labels_ptr": self.labels,
            "shifts_ptr": self.shifts,
            **self._places(columns),
            "TEMPERED": self.tempered,
            **self.student.constants(config),
        }

    def _places(self, columns: slice) -> dict[str, Any]:
        return {
            "inverse_temperature": self.inverse_temperature,
            "num_rows": len(self.labels),
            "vocab_size": self.student.vocab_size,
            "first_column": columns.start,
            "width": self.buffer.shape[1],
        }

    def _per_row(self, *leading: int) -> Tensor:
        return self.buffer.new_empty((*leading, len(self.labels)), dtype=torch.float32)
