"""Losses whose gradients were computed together with their value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def wants_gradient(*tensors: Tensor | None) -> tuple[bool, ...]:
    """For each tensor, whether a backward pass from here would reach it."""
    return tuple(tensor is not None and tensor.requires_grad and torch.is_grad_enabled() for tensor in tensors)


def attach_gradients(value: Tensor, inputs: tuple[Tensor | None, ...], gradients: tuple[Tensor | None, ...]) -> Tensor:
    """Make the scalar ``value`` differentiable with respect to ``inputs``.

    ``gradients[i]`` has the shape of ``inputs[i]``, or is None where none is wanted. The backward pass multiplies it
    by the incoming gradient and only then rounds it to the input's dtype, so that a loss scale for fp16 acts before
    the rounding. It may run more than once (``retain_graph``); it cannot itself be differentiated.

    None of the inputs is kept for the backward pass, only their gradients are. A parameter whose storage is swapped
    between the passes (DeepSpeed's ZeRO stage 3) is therefore safe: it is an input of the node, and nobody reads it.
    """
    result: Tensor = _PrecomputedGradients.apply(value, gradients, *inputs)
    return result


class _PrecomputedGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # A vocabulary's gradient is hundreds of megabytes: scaled in place when no other backward pass will need it.
        last_pass = not torch._C._autograd._get_current_graph_task_keep_graph()
        scaled: list[Tensor | None] = []
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True):
            if gradient is None:
                scaled.append(None)
            elif last_pass and gradient.dtype == dtype:
                scaled.append(gradient.mul_(upstream))
            else:
                scaled.append(torch.mul(gradient, upstream, out=torch.empty_like(gradient, dtype=dtype)))
        return None, None, *scaled
