"""A linear head over the vocabulary as the kernels take it, and the gradients that they collect for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unibert_kernels.fused.configs import TileConfig, tile_config
from unibert_kernels.fused.launch import generation_of, launch, tile_source
from unibert_kernels.fused.rounding import keep
from unibert_kernels.linear_head import Head
from unibert_kernels.products import fp32_products_may_be_tf32, product

WEIGHT_ROWS = 2**14
"""Rows of the weight's gradient that pass through fp32 at a time: 25 MB at H = 384, which stays in a GPU's cache."""
BIAS_COLUMNS = 8
"""Columns that the bias's gradient adds to that of the weight, of which it fills the first: products of halves want
rows that begin on 16 bytes."""
TRITON_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _label_logits_kernel(
    states_ptr,
    weight_ptr,
    labels_ptr,
    bias_ptr,
    label_logits_ptr,
    hidden_size,
    HAS_BIAS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    label = tl.maximum(tl.load(labels_ptr + row), 0).to(tl.int64)
    places = tl.arange(0, WIDTH)
    inside = places < hidden_size
    x = tl.load(states_ptr + row * hidden_size + places, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight_ptr + label * hidden_size + places, mask=inside, other=0.0).to(tl.float32)
    logit = tl.sum(x * w, 0)
    if HAS_BIAS:
        logit += tl.load(bias_ptr + label)
    tl.store(label_logits_ptr + row, logit)


@dataclass(frozen=True)
class LinearHead:
    """Contiguous operands of one dtype: ``states`` (N, H), ``weight`` (V, H); ``bias`` (V,) fp32 or None."""

    states: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def prepare(cls, head: Head, rows: Tensor | None = None) -> LinearHead:
        """Round to the operands' dtype and gather ``rows`` (N,).

        Gathering copies N x H elements, nothing beside the products' 6 N H V, and these want contiguous operands.
        """
        hidden, weight, bias = head.tensors
        states = hidden.detach() if rows is None else hidden.detach().index_select(0, rows)
        return cls(
            _aligned(states.to(head.dtype)),
            _aligned(weight.detach().to(head.dtype)),
            None if bias is None else bias.detach().float().contiguous(),
        )

    @property
    def vocab_size(self) -> int:
        return len(self.weight)

    @property
    def hidden_size(self) -> int:
        return self.weight.shape[1]

    def take(self, rows: slice) -> LinearHead:
        """The head of some of the rows."""
        return LinearHead(self.states[rows], self.weight, self.bias)

    def sources(self, config: TileConfig) -> dict[str, Any]:
        """The kernels' arguments for the operands."""
        return {
            "states": tile_source(self.states, config.rows, config.depth, config.descriptors),
            "weight": tile_source(self.weight, config.columns, config.depth, config.descriptors),
            "bias_ptr": self.states if self.bias is None else self.bias,
            "hidden_size": self.hidden_size,
        }

    def constants(self, config: TileConfig) -> dict[str, Any]:
        """The kernels' constants and launch options. Products of fp32 operands are as exact as torch's own."""
        return {
            "HAS_BIAS": self.bias is not None,
            "DTYPE": TRITON_DTYPES[self.states.dtype],
            "PRECISION": "tf32" if self.states.dtype == torch.float32 and fp32_products_may_be_tf32() else "ieee",
            **config.launch_options,
        }

    def tile_config(self, kernel: str) -> TileConfig:
        """How ``kernel`` is cut into tiles for these operands."""
        return tile_config(kernel, self.states.dtype, generation_of(self.states.device))

    def label_logits(self, labels: Tensor) -> Tensor:
        """(N,) fp32, the logit of each row's label (N,), of id 0 where that is -1, up to the rounding of a sum."""
        logits = self.states.new_empty(len(labels), dtype=torch.float32)
        launch(
            _label_logits_kernel,
            (len(labels),),
            states_ptr=self.states,
            weight_ptr=self.weight,
            labels_ptr=labels,
            bias_ptr=self.states if self.bias is None else self.bias,
            label_logits_ptr=logits,
            hidden_size=self.hidden_size,
            HAS_BIAS=self.bias is not None,
            WIDTH=triton.next_power_of_2(self.hidden_size),
        )
        return logits

    def logit_sums(self) -> Tensor:
        """(N,) fp32, the sum of each row's logits, for which a sum over the weight's rows is enough."""
        total = self.states.float() @ self.weight.sum(0, dtype=torch.float32)
        return total if self.bias is None else total + self.bias.sum(dtype=torch.float32)


class HeadGradients:
    """Gradients of a sum of row losses with respect to a head's three tensors, those that are wanted.

    A bf16 weight's gradient is kept in bf16 if every element of it is written just once, and in fp32 as long as rows
    add to it. fp16 is left to the end: a loss scale has to act before the rounding.

    The bias's gradient, Σ_n dZ_n, is dZᵀ times a column of ones, which stands beside the states: the product that gives
    the weight's gives it too, without another pass over dZ.
    """

    def __init__(
        self, head: Head, wants: tuple[bool, ...], linear: LinearHead, rows: Tensor | None, rows_add_up: bool
    ) -> None:
        self._linear, self._rows, self._shape = linear, rows, head.hidden.shape
        self._dtypes = gradient_dtypes(head)
        self.wants_hidden, self.wants_weight, self.wants_bias = wants
        self._hidden = linear.states.new_empty(linear.states.shape, dtype=torch.float32) if self.wants_hidden else None
        self._weight = self._bias = self._sums = None
        self._operand = linear.states
        if rows_add_up and (self.wants_weight or self.wants_bias):
            self._sums = self._new_sums(linear.vocab_size)
        else:
            # Zero, where there are no rows to collect anything from.
            new = linear.weight.new_empty if len(linear.states) else linear.weight.new_zeros
            self._weight = new(linear.weight.shape, dtype=self._dtypes[1]) if self.wants_weight else None
            self._bias = new(linear.vocab_size, dtype=torch.float32) if self.wants_bias else None

    def _new_sums(self, num_columns: int) -> Tensor:
        """fp32, for that many of the V ids: the weight's columns, if wanted, then the bias's, if wanted."""
        width = self.wants_weight * self._linear.hidden_size + self.wants_bias * BIAS_COLUMNS
        return self._linear.states.new_empty((num_columns, width), dtype=torch.float32)

    @property
    def wanted(self) -> bool:
        """Whether any gradient is."""
        return self.wants_hidden or self.wants_weight or self.wants_bias

    def collect(self, rows: slice, columns: slice, logits_gradient: Tensor, scale: Tensor | None = None) -> None:
        """Add what the rows' gradient of their logits in those columns contributes.

        Slices come in order: all the columns of the first rows, then of the next.

        Args:
            rows: which of the N rows.
            columns: which of the V ids.
            logits_gradient: (rows, columns) in the operands' dtype, each row still to be multiplied by its ``scale``.
            scale: (rows,) fp32, 1 if None.
        """
        if self._hidden is not None:
            out = self._hidden[rows]
            product(logits_gradient, self._linear.weight[columns], out, accumulate=columns.start > 0)
            if scale is not None:
                out.mul_(scale[:, None])
        if not self.wants_weight and not self.wants_bias:
            return
        if columns.start == 0:
            self._operand = self._right_operand(rows, scale)
        if self._sums is not None:
            product(logits_gradient.t(), self._operand, self._sums[columns], accumulate=rows.start > 0)
            return
        # Asked for a half-precision result, cuBLAS may add partial sums in half precision.
        for start in range(columns.start, columns.stop, WEIGHT_ROWS):
            some = slice(start, min(start + WEIGHT_ROWS, columns.stop))
            sums = self._new_sums(some.stop - some.start)
            here = slice(some.start - columns.start, some.stop - columns.start)
            product(logits_gradient[:, here].t(), self._operand, sums)
            keep(
                sums,
                None if self._weight is None else self._weight[some],
                None if self._bias is None else self._bias[some],
            )

    def _right_operand(self, rows: slice, scale: Tensor | None) -> Tensor:
        """What dZᵀ is multiplied by: states times ``scale``, and ``scale`` itself for the bias."""
        states = self._linear.states[rows]
        if scale is None and not self.wants_bias:
            return states
        hidden_size = self.wants_weight * self._linear.hidden_size
        operand = states.new_zeros((len(states), hidden_size + self.wants_bias * BIAS_COLUMNS))
        if self.wants_weight:
            operand[:, :hidden_size] = states if scale is None else states * scale[:, None]
        if self.wants_bias:
            operand[:, hidden_size] = 1.0 if scale is None else scale
        return operand

    def spread_evenly(self, factor: float, counted: Tensor) -> None:
        """Add ``factor`` to the gradient of every logit of every ``counted`` (N,) row, after all was collected: two
        vectors do it."""
        self._finish_sums()
        counts = counted.to(self._linear.states.dtype)
        if self._hidden is not None:
            total = self._linear.weight.sum(0, dtype=torch.float32)
            self._hidden += factor * counted[:, None] * total
        if self._weight is not None:
            self._weight += factor * (counts @ self._linear.states).to(self._weight.dtype)
        if self._bias is not None:
            self._bias += factor * counted.sum()

    def results(self) -> tuple[Tensor | None, ...]:
        """The gradients, contiguous, in the shapes of the head's tensors and of `gradient_dtypes`."""
        self._finish_sums()
        hidden = self._hidden
        if hidden is not None:
            hidden = hidden.to(self._dtypes[0])
            if self._rows is not None:
                hidden = hidden.new_zeros(self._shape).index_add_(0, self._rows, hidden)
        return hidden, self._weight, self._bias

    def _finish_sums(self) -> None:
        """Round what rows have added up."""
        if self._sums is None:
            return
        weight, vocab_size = self._linear.weight, self._linear.vocab_size
        self._weight = weight.new_empty(weight.shape, dtype=self._dtypes[1]) if self.wants_weight else None
        self._bias = weight.new_empty(vocab_size, dtype=torch.float32) if self.wants_bias else None
        keep(self._sums, self._weight, self._bias)
        self._sums = None


def gradient_dtypes(head: Head) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """What the finished gradients of hidden, weight and bias are kept in from the forward to the backward pass."""
    hidden, weight = (
        torch.bfloat16 if tensor.dtype == torch.bfloat16 else torch.float32 for tensor in (head.hidden, head.weight)
    )
    return hidden, weight, torch.float32


def _aligned(matrix: Tensor) -> Tensor:
    """``matrix``, contiguous and on 16 bytes, which descriptors need and a view into a flat buffer may not have."""
    matrix = matrix.contiguous()
    return matrix if matrix.data_ptr() % 16 == 0 else matrix.clone()
