"""`unibert_kernels.distillation` in Triton: a buffer of the teacher's logits stands between one head and the other.

With shifts c (teacher) and b (student), each row's logit of its label, the kernels work on

    d = (t - c) / T        s' = (s - b) / T        kl = Σ_v p_v (d_v - s'_v) - LSE(d) + LSE(s')

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
from unibert_kernels.fused.partition import RECOMPUTE_ROWS, column_slices, number_of_splits, padded, row_slices
from unibert_kernels.fused.tiles import load_tile, logits_tile, maximum_over_splits, store_tile
from unibert_kernels.linear_head import Head

FINISHED_ROWS = 128
LARGEST_HALF = tl.constexpr(60000.0)


# Sizes that change with the batch are not specialised: that would compile anew in the midst of training.
@triton.jit(do_not_specialize=["num_rows"])
def _teacher_kernel(
    states,
    weight,
    bias,
    hidden_size,
    target,
    shifts,
    inverse_temperature,
    num_rows,
    vocab_size,
    first_column,
    width,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """A tile of (t - c) / T at its place in ``target`` (N, width)."""
    row = tl.program_id(0) * ROWS
    place = tl.program_id(1) * COLUMNS
    logits = logits_tile(
        states, weight, bias, row, first_column + place, num_rows, vocab_size, hidden_size,
        ROWS, COLUMNS, DEPTH, HAS_BIAS, DESCRIPTORS, PRECISION,
    )  # fmt: skip
    rows = row + tl.arange(0, ROWS)
    shift = tl.load(shifts + rows, mask=rows < num_rows, other=0.0)
    logits = (logits - shift[:, None]) * inverse_temperature
    if tl.float16 == DTYPE:
        logits = tl.minimum(tl.maximum(logits, -LARGEST_HALF), LARGEST_HALF)
    store_tile(target, row, place, num_rows, width, logits.to(DTYPE), ROWS, COLUMNS, DESCRIPTORS)


@triton.jit(do_not_specialize=["num_rows", "first_split", "tiles_per_split", "tiles"])
def _statistics_kernel(
    states,
    weight,
    bias,
    hidden_size,
    teacher,
    labels,
    shifts,
    inverse_temperature,
    maxima,
    sums,
    tempered_sums,
    teacher_maxima,
    teacher_sums,
    expectations,
    label_logits,
    num_rows,
    vocab_size,
    first_column,
    width,
    first_split,
    tiles_per_split,
    tiles,
    TEMPERED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """A block of rows over one split of the buffer's columns: of s - b its maximum, Σ exp(s - b - maximum), the same at
    the temperature; of d its maximum, Σ exp(d - maximum) and Σ exp(d - maximum) (d - s'); s - b of the label."""
    row = tl.program_id(0) * ROWS
    split = tl.program_id(1)
    rows = row + tl.arange(0, ROWS)
    present = rows < num_rows
    label = tl.load(labels + rows, mask=present, other=-1).to(tl.int32)
    shift = tl.load(shifts + rows, mask=present, other=0.0)
    maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    tempered = tl.zeros((ROWS,), tl.float32)
    teacher_maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    teacher_total = tl.zeros((ROWS,), tl.float32)
    expectation = tl.zeros((ROWS,), tl.float32)
    label_logit = tl.zeros((ROWS,), tl.float32)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    for tile in tl.range(first, last, flatten=True):
        place = tile * COLUMNS
        column = first_column + place
        logits = logits_tile(
            states, weight, bias, row, column, num_rows, vocab_size, hidden_size,
            ROWS, COLUMNS, DEPTH, HAS_BIAS, DESCRIPTORS, PRECISION,
        )  # fmt: skip
        logits -= shift[:, None]
        taught = load_tile(teacher, row, place, num_rows, width, ROWS, COLUMNS, DESCRIPTORS).to(tl.float32)
        columns = column + tl.arange(0, COLUMNS)
        inside = (columns < vocab_size)[None, :]
        # Few tiles hold a label of their rows: the others skip three operations an element.
        if tl.max(((label >= column) & (label < column + COLUMNS)).to(tl.int32), 0) > 0:
            label_logit += tl.sum(tl.where(columns[None, :] == label[:, None], logits, 0.0), 1)

        higher = tl.maximum(teacher_maximum, tl.max(tl.where(inside, taught, float("-inf")), 1))
        correction = tl.exp(teacher_maximum - higher)
        exps = tl.where(inside, tl.exp(taught - higher[:, None]), 0.0)
        teacher_total = teacher_total * correction + tl.sum(exps, 1)
        difference = taught - logits * inverse_temperature
        expectation = expectation * correction + tl.sum(exps * difference, 1)
        teacher_maximum = higher

        logits = tl.where(inside, logits, float("-inf"))
        higher = tl.maximum(maximum, tl.max(logits, 1))
        total = total * tl.exp(maximum - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        if TEMPERED:
            # Multiplied first, as the teacher's are: where the two are the same, so is every number.
            highest = higher * inverse_temperature
            tempered *= tl.exp(maximum * inverse_temperature - highest)
            tempered += tl.sum(tl.exp(logits * inverse_temperature - highest[:, None]), 1)
        maximum = higher

    partial = (first_split + split) * num_rows + rows
    tl.store(maxima + partial, maximum, mask=present)
    tl.store(sums + partial, total, mask=present)
    if TEMPERED:
        tl.store(tempered_sums + partial, tempered, mask=present)
    tl.store(teacher_maxima + partial, teacher_maximum, mask=present)
    tl.store(teacher_sums + partial, teacher_total, mask=present)
    tl.store(expectations + partial, expectation, mask=present)
    mine = present & (label >= first_column + first * COLUMNS) & (label < first_column + last * COLUMNS)
    tl.store(label_logits + rows, label_logit, mask=mine)


@triton.jit(do_not_specialize=["num_rows", "splits"])
def _finish_rows_kernel(
    labels,
    counted,
    inverse_temperature,
    maxima,
    sums,
    tempered_sums,
    teacher_maxima,
    teacher_sums,
    expectations,
    label_logits,
    num_rows,
    splits,
    divergences,
    cross_entropies,
    hits,
    log_sums,
    tempered_log_sums,
    teacher_log_sums,
    TEMPERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge the splits of each row. A split that no tile fell to has -inf for a maximum, and so no weight."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = rows < num_rows
    counts = tl.load(counted + rows, mask=present, other=0) != 0
    known = counts & (tl.load(labels + rows, mask=present, other=-1) >= 0)
    label_logit = tl.load(label_logits + rows, mask=known, other=0.0)
    maximum = maximum_over_splits(maxima, rows, present, num_rows, splits, BLOCK)
    teacher_maximum = maximum_over_splits(teacher_maxima, rows, present, num_rows, splits, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    tempered = tl.zeros((BLOCK,), tl.float32)
    teacher_total = tl.zeros((BLOCK,), tl.float32)
    expectation = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        partial = split * num_rows + rows
        part = tl.load(maxima + partial, mask=present, other=0.0)
        total += tl.load(sums + partial, mask=present, other=1.0) * tl.exp(part - maximum)
        if TEMPERED:
            weight = tl.exp(part * inverse_temperature - maximum * inverse_temperature)
            tempered += tl.load(tempered_sums + partial, mask=present, other=1.0) * weight
        weight = tl.exp(tl.load(teacher_maxima + partial, mask=present, other=0.0) - teacher_maximum)
        teacher_total += tl.load(teacher_sums + partial, mask=present, other=1.0) * weight
        expectation += tl.load(expectations + partial, mask=present, other=0.0) * weight
    log_sum = maximum + tl.log(total)
    tempered_log_sum = log_sum
    if TEMPERED:
        tempered_log_sum = maximum * inverse_temperature + tl.log(tempered)
    teacher_log_sum = teacher_maximum + tl.log(teacher_total)
    divergence = expectation / teacher_total - (teacher_log_sum - tempered_log_sum)
    tl.store(divergences + rows, tl.where(counts, divergence, 0.0), mask=present)
    tl.store(cross_entropies + rows, tl.where(known, log_sum - label_logit, 0.0), mask=present)
    tl.store(hits + rows, known & (label_logit >= maximum), mask=present)
    tl.store(log_sums + rows, log_sum, mask=present)
    tl.store(tempered_log_sums + rows, tempered_log_sum, mask=present)
    tl.store(teacher_log_sums + rows, teacher_log_sum, mask=present)


@triton.jit(do_not_specialize=["num_rows"])
def _gradient_kernel(
    states,
    weight,
    bias,
    hidden_size,
    teacher,
    target,
    labels,
    counted,
    shifts,
    inverse_temperature,
    log_sums,
    tempered_log_sums,
    teacher_log_sums,
    bias_sums,
    kl_factor,
    ce_weight,
    num_rows,
    vocab_size,
    first_column,
    width,
    TEMPERED: tl.constexpr,
    WANTS_BIAS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """∂loss/∂s of a tile in place of the teacher's, ``target`` being ``teacher`` under another dtype."""
    row = tl.program_id(0) * ROWS
    place = tl.program_id(1) * COLUMNS
    column = first_column + place
    rows = row + tl.arange(0, ROWS)
    columns = column + tl.arange(0, COLUMNS)
    present = rows < num_rows
    logits = logits_tile(
        states, weight, bias, row, column, num_rows, vocab_size, hidden_size,
        ROWS, COLUMNS, DEPTH, HAS_BIAS, DESCRIPTORS, PRECISION,
    )  # fmt: skip
    taught = load_tile(teacher, row, place, num_rows, width, ROWS, COLUMNS, DESCRIPTORS).to(tl.float32)
    counts = tl.load(counted + rows, mask=present, other=0) != 0
    label = tl.load(labels + rows, mask=present, other=-1).to(tl.int32)
    logits -= tl.load(shifts + rows, mask=present, other=0.0)[:, None]
    # Rows that do not count are infinitely improbable.
    log_sum = tl.load(log_sums + rows, mask=counts, other=float("inf"))
    tempered_log_sum = tl.load(tempered_log_sums + rows, mask=counts, other=float("inf"))
    teacher_log_sum = tl.load(teacher_log_sums + rows, mask=counts, other=float("inf"))
    gradient = tl.exp(logits * inverse_temperature - tempered_log_sum[:, None])
    gradient -= tl.exp(taught - teacher_log_sum[:, None])
    gradient *= kl_factor * inverse_temperature
    onehot = tl.where((columns[None, :] == label[:, None]) & counts[:, None], 1.0, 0.0)
    gradient += ce_weight * (tl.exp(logits - log_sum[:, None]) - onehot)
    store_tile(target, row, place, num_rows, width, gradient.to(DTYPE), ROWS, COLUMNS, DESCRIPTORS)
    if WANTS_BIAS:
        tl.store(bias_sums + tl.program_id(0).to(tl.int64) * width + place + tl.arange(0, COLUMNS), tl.sum(gradient, 0))


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
    block = max(linear.tile_config("divergence").columns, teacher_linear.tile_config("gradient").columns)
    width = padded(slice(0, vocab_size), block)
    stored = path == "store-teacher"
    parts = row_slices(len(targets), max_workspace // (width * element_size) if stored else RECOMPUTE_ROWS)
    gradients = HeadGradients(student, wants, linear, None, rows_add_up=len(parts) > 1)
    divergences = linear.states.new_empty(len(targets), dtype=torch.float32)
    cross_entropies, hits = torch.empty_like(divergences), torch.empty_like(counted)
    with torch.autocast(linear.states.device.type, enabled=False):
        for part in parts:
            most = part.stop - part.start
            everything = [slice(0, vocab_size)]
            slices = everything if stored else column_slices(most, element_size, vocab_size, block)
            rows = _Rows(
                linear.take(part), teacher_linear.take(part), targets[part], counted[part], temperature,
                linear.states.new_empty((most, padded(slices[0], block)), dtype=_buffer_dtype(linear)),
            )  # fmt: skip
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
        temperature: float,
        buffer: Tensor,
    ) -> None:
        self.student, self.teacher, self.labels, self.counted = student, teacher, labels, counted
        self.inverse_temperature, self.tempered = 1.0 / temperature, temperature != 1
        self.shifts, self.teacher_shifts = student.label_logits(labels), teacher.label_logits(labels)
        self.buffer = buffer
        self.held: slice | None = None
        self.statistics: dict[str, Tensor] = {}

    def measure(self, slices: list[slice]) -> tuple[Tensor, Tensor, Tensor]:
        """Steps 1 and 2: each row's KL, cross-entropy and hit."""
        config = self.student.tile_config("divergence")
        num_rows = len(self.labels)
        row_blocks = triton.cdiv(num_rows, config.rows)
        tiles = triton.cdiv(slices[0].stop, config.columns)
        splits = number_of_splits(row_blocks, tiles, multiprocessors_of(self.buffer.device))
        names = ("maxima", "sums", "tempered_sums", "teacher_maxima", "teacher_sums", "expectations")
        partials = {name: self._per_row(splits * len(slices)) for name in names}
        partials["label_logits"] = self._per_row()
        for number, columns in enumerate(slices):
            self._hold(columns)
            tiles = triton.cdiv(columns.stop - columns.start, config.columns)
            launch(
                _statistics_kernel,
                (row_blocks, splits),
                **self._student_arguments(config, columns),
                **partials,
                first_split=number * splits,
                tiles_per_split=triton.cdiv(tiles, splits),
                tiles=tiles,
            )
        divergences, cross_entropies, hits = self._per_row(), self._per_row(), torch.empty_like(self.counted)
        self.statistics = {name: self._per_row() for name in ("log_sums", "tempered_log_sums", "teacher_log_sums")}
        launch(
            _finish_rows_kernel, (triton.cdiv(num_rows, FINISHED_ROWS),), labels=self.labels, counted=self.counted,
            inverse_temperature=self.inverse_temperature, **partials, num_rows=num_rows, splits=splits * len(slices),
            divergences=divergences, cross_entropies=cross_entropies, hits=hits, **self.statistics,
            TEMPERED=self.tempered, BLOCK=FINISHED_ROWS,
        )  # fmt: skip
        return divergences, cross_entropies, hits

    def collect(
        self, gradients: HeadGradients, part: slice, slices: list[slice], kl_factor: float, ce_weight: float
    ) -> None:
        """Steps 1, where the buffer holds other columns, 3 and 4."""
        config = self.student.tile_config("divergence")
        row_blocks = triton.cdiv(len(self.labels), config.rows)
        gradient = self.buffer.view(self.student.states.dtype)
        bias_sums = gradient.new_empty((row_blocks, gradient.shape[1]), dtype=torch.float32)
        for columns in slices:
            self._hold(columns)
            launch(
                _gradient_kernel,
                (row_blocks, triton.cdiv(columns.stop - columns.start, config.columns)),
                **self._student_arguments(config, columns),
                **self.statistics,
                target=tile_source(gradient, config.rows, config.columns, config.descriptors),
                counted=self.counted,
                bias_sums=bias_sums,
                kl_factor=float(kl_factor),
                ce_weight=float(ce_weight),
                WANTS_BIAS=gradients.wants_bias,
            )
            self.held = None
            here = slice(0, columns.stop - columns.start)
            bias = bias_sums[:, here].sum(0) if gradients.wants_bias else None
            gradients.collect(part, columns, gradient[:, here], bias)

    def _hold(self, columns: slice) -> None:
        """Step 1, unless the buffer has these columns."""
        if self.held == columns:
            return
        self.held = columns
        config = self.teacher.tile_config("gradient")
        options = self.teacher.constants(config) | {"DTYPE": TRITON_DTYPES[self.buffer.dtype]}
        launch(
            _teacher_kernel,
            (triton.cdiv(len(self.labels), config.rows), triton.cdiv(columns.stop - columns.start, config.columns)),
            **self.teacher.sources(config),
            target=tile_source(self.buffer, config.rows, config.columns, config.descriptors),
            shifts=self.teacher_shifts,
            **self._places(columns),
            **options,
        )

    def _student_arguments(self, config: TileConfig, columns: slice) -> dict[str, Any]:
        return {
            **self.student.sources(config),
            "teacher": tile_source(self.buffer, config.rows, config.columns, config.descriptors),
            "labels": self.labels,
            "shifts": self.shifts,
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
