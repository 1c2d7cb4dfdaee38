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
from unibert_kernels.linear_head import Head
from unibert_kernels.products import product

WEIGHT_ROWS = 2**14
"""Rows of the weight's gradient that pass through fp32 at a time: 25 MB at H = 384, which stays in a GPU's cache."""
TRITON_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _label_logits_kernel(
    states, weight, labels, bias, label_logits, hidden_size, HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    label = tl.maximum(tl.load(labels + row), 0).to(tl.int64)
    places = tl.arange(0, WIDTH)
    inside = places < hidden_size
    x = tl.load(states + row * hidden_size + places, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + label * hidden_size + places, mask=inside, other=0.0).to(tl.float32)
    logit = tl.sum(x * w, 0)
    if HAS_BIAS:
        logit += tl.load(bias + label).to(tl.float32)
    tl.store(label_logits + row, logit)


@dataclass(frozen=True)
class LinearHead:
    """Contiguous operands of one dtype: ``states`` (N, H), ``weight`` (V, H); ``bias`` (V,) in any dtype or None."""

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
            None if bias is None else bias.detach(),
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

    def sources(self, config: TileConfig, kind: str = "") -> dict[str, Any]:
        """The kernels' arguments for the operands, ``kind`` before each name."""
        return {
            f"{kind}states": tile_source(self.states, config.rows, config.depth, config.descriptors),
            f"{kind}weight": tile_source(self.weight, config.columns, config.depth, config.descriptors),
            f"{kind}bias": self.states if self.bias is None else self.bias,
            f"{kind}hidden_size": self.hidden_size,
        }

    def constants(self, config: TileConfig) -> dict[str, Any]:
        """The kernels' constants and launch options. Products of fp32 operands are as exact as torch's own."""
        return {
            "HAS_BIAS": self.bias is not None,
            "DTYPE": TRITON_DTYPES[self.states.dtype],
            "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
            **config.launch_options,
        }

    def tile_config(self, kernel: str) -> TileConfig:
        """How ``kernel`` is cut into tiles for these operands."""
        return tile_config(kernel, self.states.dtype, generation_of(self.states.device))

    def label_logits(self, labels: Tensor) -> Tensor:
        """(N,) fp32, the logit of each row's label (N,), of id 0 where that is -1, up to the rounding of a sum."""
        logits = self.states.new_empty(len(labels), dtype=torch.float32)
        launch(
            _label_logits_kernel, (len(labels),), self.states, self.weight, labels,
            self.states if self.bias is None else self.bias, logits, self.hidden_size,
            HAS_BIAS=self.bias is not None, WIDTH=triton.next_power_of_2(self.hidden_size),
        )  # fmt: skip
        return logits

    def logit_sums(self) -> Tensor:
        """(N,) fp32, the sum of each row's logits, for which a sum over the weight's rows is enough."""
        total = self.states.float() @ self.weight.sum(0, dtype=torch.float32)
        return total if self.bias is None else total + self.bias.sum(dtype=torch.float32)


class HeadGradients:
    """Gradients of a sum of row losses with respect to a head's three tensors, those that are wanted.

    A bf16 weight's gradient is kept in bf16 if every element of it is written just once, and in fp32 as long as rows
    add to it. fp16 is left to the end: a loss scale has to act before the rounding.
    """

    def __init__(
        self, head: Head, wants: tuple[bool, ...], linear: LinearHead, rows: Tensor | None, rows_add_up: bool
    ) -> None:
        self._linear, self._rows, self._shape = linear, rows, head.hidden.shape
        self._dtypes = gradient_dtypes(head)
        self.wants_hidden, self.wants_weight, self.wants_bias = wants
        weight_dtype = torch.float32 if rows_add_up else self._dtypes[1]
        self._hidden = linear.states.new_empty(linear.states.shape, dtype=torch.float32) if self.wants_hidden else None
        self._weight = linear.weight.new_empty(linear.weight.shape, dtype=weight_dtype) if self.wants_weight else None
        self._bias = linear.weight.new_zeros(linear.vocab_size, dtype=torch.float32) if self.wants_bias else None
        if not len(linear.states):
            # Nothing will be collected.
            for gradient in (self._weight, self._bias):
                if gradient is not None:
                    gradient.zero_()

    @property
    def wanted(self) -> bool:
        """Whether any gradient is."""
        return self.wants_hidden or self.wants_weight or self.wants_bias

    def collect(
        self, rows: slice, columns: slice, logits_gradient: Tensor, bias: Tensor | None, scale: Tensor | None = None
    ) -> None:
        """Add what the rows' gradient of their logits in those columns contributes.

        Slices come in order: all the columns of the first rows, then of the next.

        Args:
            rows: which of the N rows.
            columns: which of the V ids.
            logits_gradient: (rows, columns) in the operands' dtype, each row still to be multiplied by its ``scale``.
            bias: (columns,) its sum over the rows, ``scale`` within; None if no bias wants a gradient.
            scale: (rows,) fp32, 1 if None.
        """
        if self._hidden is not None:
            out = self._hidden[rows]
            product(logits_gradient, self._linear.weight[columns], out, accumulate=columns.start > 0)
            if scale is not None:
                out.mul_(scale[:, None])
        if self._weight is not None:
            states = self._linear.states[rows]
            if scale is not None:
                states = (states * scale[:, None]).to(states.dtype)
            self._collect_weight(self._weight[columns], logits_gradient, states, accumulate=rows.start > 0)
        if self._bias is not None:
            assert bias is not None
            self._bias[columns] += bias

    @staticmethod
    def _collect_weight(out: Tensor, logits_gradient: Tensor, states: Tensor, *, accumulate: bool) -> None:
        if out.dtype == torch.float32:
            product(logits_gradient.t(), states, out, accumulate=accumulate)
            return
        # Asked for a half-precision result, cuBLAS may add partial sums in half precision.
        for start in range(0, len(out), WEIGHT_ROWS):
            some = slice(start, start + WEIGHT_ROWS)
            sums = out.new_empty(out[some].shape, dtype=torch.float32)
            product(logits_gradient[:, some].t(), states, sums)
            out[some] = sums

    def spread_evenly(self, factor: float, counted: Tensor) -> None:
        """Add ``factor`` to the gradient of every logit of every ``counted`` (N,) row: two vectors do it."""
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
        hidden, weight = self._hidden, self._weight
        if hidden is not None:
            hidden = hidden.to(self._dtypes[0])
            if self._rows is not None:
                hidden = hidden.new_zeros(self._shape).index_add_(0, self._rows, hidden)
        if weight is not None:
            weight = weight.to(self._dtypes[1])
        return hidden, weight, self._bias


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
