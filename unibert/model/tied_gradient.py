"""The gradient of the matrix that both embeds tokens and is the MLM head's, in one piece.

Autograd makes two gradients (V, H), the head's and that of the embeddings, which is zero but for the rows of the
batch's tokens, and adds them. On a CPU these are four passes over 184 MB at V = 119,552 and H = 384, and as much more
memory. Here the head's gradient waits for the backward pass of the embeddings, which comes last and adds its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel


class TiedWeight:
    """The matrix of ``model`` for one forward pass, which first embeds tokens and then multiplies by the head's matrix.

    On other devices than a CPU, in half precision, or where embeddings and head have matrices of their own, autograd
    does its usual work.
    """

    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
    """In half precision, every row would be rounded to the precision of the head's gradient when it is added."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._embeddings, self._weight = model.get_input_embeddings(), model.get_output_embeddings().weight
        assert isinstance(self._embeddings, nn.Embedding)
        has_one_gradient = (
            self._weight is self._embeddings.weight
            and self._weight.device.type == "cpu"
            and self._weight.dtype in self.dtypes
            and self._weight.requires_grad
            and torch.is_grad_enabled()
        )
        self._gradient = _Gradient() if has_one_gradient else None

    @contextmanager
    def embeds_tokens(self) -> Iterator[None]:
        """Let the model's embeddings be looked up by this object in the block."""
        if self._gradient is None:
            yield
            return

        def look_up(input_ids: Tensor) -> Tensor:
            rows: Tensor = _Rows.apply(self._weight, input_ids, self._embeddings.padding_idx, self._gradient)
            return rows

        self._embeddings.forward = look_up
        try:
            yield
        finally:
            del self._embeddings.forward

    def of_head(self) -> Tensor:
        """Return the head's matrix (V, H), after the tokens are embedded: autograd goes backwards, and has to come to
        the head first. What it multiplies must depend on the embeddings."""
        if self._gradient is None:
            return self._weight
        weight: Tensor = _Head.apply(self._weight, self._gradient)
        return weight


class _Gradient:
    """What the head's backward pass leaves for that of the embeddings."""

    of_head: Tensor | None = None


class _Head(torch.autograd.Function):
    """The matrix as it is; its gradient is kept."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradient: _Gradient) -> Tensor:
        ctx.gradient = gradient
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, None]:
        ctx.gradient.of_head = upstream
        return None, None


class _Rows(torch.autograd.Function):
    """The rows of the tokens; their gradient is added to the head's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, input_ids: Tensor, padding_id: int | None, gradient: _Gradient) -> Tensor:
        ctx.save_for_backward(input_ids)
        ctx.vocab_size, ctx.padding_id, ctx.gradient = len(weight), padding_id, gradient
        return F.embedding(input_ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (input_ids,) = ctx.saved_tensors
        ids, rows = input_ids.flatten(), upstream.flatten(0, -2)
        if ctx.padding_id is not None:
            is_token = ids != ctx.padding_id
            ids, rows = ids[is_token], rows[is_token]
        gradient, ctx.gradient.of_head = ctx.gradient.of_head, None
        if gradient is None:  # of a loss without the head's
            gradient = rows.new_zeros(ctx.vocab_size, rows.shape[1])
        return gradient.index_add_(0, ids, rows), None, None, None
