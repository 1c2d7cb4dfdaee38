"""A linear head over the vocabulary as the kernels take it, and the gradients that they accumulate for it.

Suffix ``_h`` names a dimension of a tile: columns of hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unibert_kernels.fused.configs import TileConfig, tile_config
from unibert_kernels.fused.launch import gpu_generation, launch, tile_source
from unibert_kernels.fused.rounding import round_sums
from unibert_kernels.linear_head import Head
from unibert_kernels.products import fp32_products_may_be_tf32, product

WEIGHT_ROWS = 2**14
"""Rows of the weight's gradient that pass through fp32 at a time: 25 MB at H = 384, which stays in a GPU's cache."""
BIAS_COLUMNS = 8
"""Columns that the bias's gradient adds to that of the weight; it fills the first. Half-precision products need rows
that begin on 16 bytes."""
TRITON_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _label_logits_kernel(
    hidden_ptr,
    weight_ptr,
    labels_ptr,
    bias_ptr,
    label_logits_ptr,
    hidden_size,
    HAS_BIAS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The logit of one row's label."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.maximum(tl.load(labels_ptr + row), 0).to(tl.int64)
    columns_h = tl.arange(0, WIDTH)
    inside_h = columns_h < hidden_size
    x_h = tl.load(hidden_ptr + row * hidden_size + columns_h, mask=inside_h, other=0.0).to(tl.float32)
    w_h = tl.load(weight_ptr + label * hidden_size + columns_h, mask=inside_h, other=0.0).to(tl.float32)
    logit = tl.sum(x_h * w_h, 0)
    if HAS_BIAS:
        logit += tl.load(bias_ptr + label)
    tl.store(label_logits_ptr + row, logit)


@dataclass(frozen=True)
class LinearHead:
    """Contiguous operands of one dtype: ``hidden`` (N, H), ``weight`` (V, H); ``bias`` (V,) fp32 or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def prepare(cls, head: Head) -> LinearHead:
        """Round to the operands' dtype and make contiguous."""
        hidden, weight, bias = head.tensors
        return cls(
            _aligned(hidden.detach().to(head.dtype)),
            _aligned(weight.detach().to(head.dtype)),
            None if bias is None else bias.detach().float().contiguous(),
        )

    @property
    def vocab_size(self) -> int:
        return len(self.weight)

    @property
    def hidden_size(self) -> int:
        return self.weight.shape[1]

    def slice_rows(self, rows: slice) -> LinearHead:
        """The same head for some of the rows."""
        return LinearHead(self.hidden[rows], self.weight, self.bias)

    def operand_arguments(self, config: TileConfig) -> dict[str, Any]:
        """Arguments of a kernel for the operands."""
        return {
            "hidden": tile_source(self.hidden, config.rows, config.depth, config.descriptors),
            "weight": tile_source(self.weight, config.columns, config.depth, config.descriptors),
            "bias_ptr": self.hidden if self.bias is None else self.bias,
            "hidden_size": self.hidden_size,
        }

    def constants(self, config: TileConfig) -> dict[str, Any]:
        """Constants and launch options of a kernel. Products of fp32 operands are as exact as torch's own."""
        return {
            "HAS_BIAS": self.bias is not None,
            "DTYPE": TRITON_DTYPES[self.hidden.dtype],
            "PRECISION": "tf32" if self.hidden.dtype == torch.float32 and fp32_products_may_be_tf32() else "ieee",
            **config.launch_options,
        }

    def tile_config(self, kernel: str) -> TileConfig:
        """The tiles of ``kernel`` for these operands."""
        return tile_config(kernel, self.hidden.dtype, gpu_generation(self.hidden.device))

    def label_logits(self, labels: Tensor) -> Tensor:
        """(N,) fp32: the logit of each row's label (N,), or of id 0 where the label is -1, up to a sum's rounding."""
        logits = self.hidden.new_empty(len(labels), dtype=torch.float32)
        launch(
            _label_logits_kernel,
            (len(labels),),
            hidden_ptr=self.hidden,
            weight_ptr=self.weight,
            labels_ptr=labels,
            bias_ptr=self.hidden if self.bias is None else self.bias,
            label_logits_ptr=logits,
            hidden_size=self.hidden_size,
            HAS_BIAS=self.bias is not None,
            WIDTH=triton.next_power_of_2(self.hidden_size),
        )
        return logits

    def logit_sums(self) -> Tensor:
        """(N,) fp32: the sum of each row's logits, from the sum of the weight's rows."""
        total = self.hidden.float() @ self.weight.sum(0, dtype=torch.float32)
        return total if self.bias is None else total + self.bias.sum(dtype=torch.float32)


class HeadGradients:
    """Gradients of a sum of row losses with respect to those of a head's three tensors that need one.

    A bf16 weight's gradient is kept in bf16 if each of its elements is written just once, and in fp32 as long as rows
    add to it. fp16 gradients stay in fp32 until the end: a loss scale has to act before the rounding.

    The bias's gradient, Σ_n dZ_n, is dZᵀ times a column of ones. That column is appended to the hidden states, so that
    the product for the weight's gradient gives the bias's too, without another pass over dZ.
    """

    def __init__(self, head: Head, needs_grad: tuple[bool, ...], linear: LinearHead, accumulate_rows: bool) -> None:
        self._linear = linear
        self._dtypes = gradient_dtypes(head)
        self._hidden_needs_grad, self._weight_needs_grad, self._bias_needs_grad = needs_grad
        self._hidden = self._weight = self._bias = self._sums = None
        if self._hidden_needs_grad:
            self._hidden = linear.hidden.new_empty(linear.hidden.shape, dtype=torch.float32)
        self._operand = linear.hidden
        if accumulate_rows and (self._weight_needs_grad or self._bias_needs_grad):
            self._sums = self._new_sums(linear.vocab_size)
        else:
            # Without rows nothing is accumulated, and the gradients are zero.
            new = linear.weight.new_empty if len(linear.hidden) else linear.weight.new_zeros
            self._weight = new(linear.weight.shape, dtype=self._dtypes[1]) if self._weight_needs_grad else None
            self._bias = new(linear.vocab_size, dtype=torch.float32) if self._bias_needs_grad else None

    def _new_sums(self, num_ids: int) -> Tensor:
        """fp32 sums for ``num_ids`` of the V ids: columns of the weight and of the bias, where they need a gradient."""
        width = self._weight_needs_grad * self._linear.hidden_size + self._bias_needs_grad * BIAS_COLUMNS
        return self._linear.hidden.new_empty((num_ids, width), dtype=torch.float32)

    @property
    def any_needed(self) -> bool:
        """Whether any tensor needs a gradient."""
        return self._hidden_needs_grad or self._weight_needs_grad or self._bias_needs_grad

    def accumulate(self, rows: slice, columns: slice, logits_gradient: Tensor, scale: Tensor | None = None) -> None:
        """Add the contribution of the gradient of some rows' logits in some columns.

        Slices come in order: all columns of the first rows, then of the next.

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
        if not self._weight_needs_grad and not self._bias_needs_grad:
            return
        if columns.start == 0:
            self._operand = self._right_operand(rows, scale)
        if self._sums is not None:
            product(logits_gradient.t(), self._operand, self._sums[columns], accumulate=rows.start > 0)
            return
        # If the result had half precision, cuBLAS might add partial sums in half precision.
        for start in range(columns.start, columns.stop, WEIGHT_ROWS):
            ids = slice(start, min(start + WEIGHT_ROWS, columns.stop))
            sums = self._new_sums(ids.stop - ids.start)
            columns_of_ids = slice(ids.start - columns.start, ids.stop - columns.start)
            product(logits_gradient[:, columns_of_ids].t(), self._operand, sums)
            round_sums(
                sums,
                None if self._weight is None else self._weight[ids],
                None if self._bias is None else self._bias[ids],
            )

    def _right_operand(self, rows: slice, scale: Tensor | None) -> Tensor:
        """The right operand of dZᵀ: hidden states times ``scale``, and for the bias ``scale`` itself."""
        hidden = self._linear.hidden[rows]
        if scale is None and not self._bias_needs_grad:
            return hidden
        hidden_size = self._weight_needs_grad * self._linear.hidden_size
        operand = hidden.new_zeros((len(hidden), hidden_size + self._bias_needs_grad * BIAS_COLUMNS))
        if self._weight_needs_grad:
            operand[:, :hidden_size] = hidden if scale is None else hidden * scale[:, None]
        if self._bias_needs_grad:
            operand[:, hidden_size] = 1.0 if scale is None else scale
        return operand

    def add_to_every_logit(self, value: float, counted: Tensor) -> None:
        """Add ``value`` to the gradient of every logit of every ``counted`` (N,) row, after all was accumulated.

        This takes two vectors instead of products.
        """
        self._finish_sums()
        counts = counted.to(self._linear.hidden.dtype)
        if self._hidden is not None:
            total = self._linear.weight.sum(0, dtype=torch.float32)
            self._hidden += value * counted[:, None] * total
        if self._weight is not None:
            self._weight += value * (counts @ self._linear.hidden).to(self._weight.dtype)
        if self._bias is not None:
            self._bias += value * counted.sum()

    def results(self) -> tuple[Tensor | None, ...]:
        """The gradients, contiguous, in the shapes of the head's tensors and the dtypes of `gradient_dtypes`."""
        self._finish_sums()
        hidden = None if self._hidden is None else self._hidden.to(self._dtypes[0])
        return hidden, self._weight, self._bias

    def _finish_sums(self) -> None:
        """Round the sums over all rows."""
        if self._sums is None:
            return
        weight, vocab_size = self._linear.weight, self._linear.vocab_size
        self._weight = weight.new_empty(weight.shape, dtype=self._dtypes[1]) if self._weight_needs_grad else None
        self._bias = weight.new_empty(vocab_size, dtype=torch.float32) if self._bias_needs_grad else None
        round_sums(self._sums, self._weight, self._bias)
        self._sums = None


def gradient_dtypes(head: Head) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """Dtypes of the gradients of hidden, weight and bias between the forward and the backward pass."""
    hidden, weight = (
        torch.bfloat16 if tensor.dtype == torch.bfloat16 else torch.float32 for tensor in (head.hidden, head.weight)
    )
    return hidden, weight, torch.float32


def _aligned(matrix: Tensor) -> Tensor:
    """``matrix``, contiguous and on 16 bytes, which descriptors need and a view of a flat buffer may not have."""
    matrix = matrix.contiguous()
    return matrix if matrix.data_ptr() % 16 == 0 else matrix.clone()
