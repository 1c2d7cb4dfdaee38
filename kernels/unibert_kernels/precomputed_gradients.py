"""Losses whose gradients are computed together with their value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unibert_kernels.paths import runs_triton


def needs_gradient(*tensors: Tensor | None) -> tuple[bool, ...]:
    """Whether a backward pass would reach each of ``tensors``."""
    return tuple(tensor is not None and tensor.requires_grad and torch.is_grad_enabled() for tensor in tensors)


def attach_gradients(value: Tensor, inputs: tuple[Tensor | None, ...], gradients: tuple[Tensor | None, ...]) -> Tensor:
    """Make the scalar ``value`` differentiable with respect to ``inputs``.

    ``gradients[i]`` has the shape of ``inputs[i]``, or is None where none is needed. The backward pass multiplies it by
    the incoming gradient and only then rounds it to the input's dtype, so that a loss scale for fp16 acts before the
    rounding. It may run more than once (``retain_graph``) but cannot itself be differentiated.

    Under torch.compile the same numbers are computed out of place, by the backend's kernels.

    Only the gradients are saved for the backward pass, none of the inputs. A parameter whose storage is swapped between
    the passes (DeepSpeed's ZeRO stage 3) is therefore safe: it is an input of the node, but is never read.
    """
    needed = [(tensor, gradient) for tensor, gradient in zip(inputs, gradients, strict=True) if gradient is not None]
    function = _Traced if torch.compiler.is_compiling() else _PrecomputedGradients
    result: Tensor = function.apply(value, *(tensor for tensor, _ in needed), *(gradient for _, gradient in needed))
    return result


class _Traced(torch.autograd.Function):
    """The variant for torch.compile, which supports neither the check for the last pass nor `once_differentiable`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *inputs_and_gradients: Tensor) -> Tensor:
        number = len(inputs_and_gradients) // 2
        ctx.save_for_backward(*inputs_and_gradients[number:])
        ctx.dtypes = [tensor.dtype for tensor in inputs_and_gradients[:number]]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            (gradient * upstream.view(1)).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, *scaled, *(None for _ in scaled)


class _PrecomputedGradients(_Traced):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # A vocabulary's gradient takes hundreds of megabytes: it is scaled in place unless another pass will need it.
        last_pass = not torch._C._autograd._get_current_graph_task_keep_graph()
        # torch rounds a scalar to a bf16 gradient's dtype before the product, but not a tensor of one element.
        factor = upstream.view(1)
        scaled: list[Tensor] = []
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True):
            in_place = last_pass and gradient.dtype == dtype
            out = gradient if in_place else torch.empty_like(gradient, dtype=dtype)
            if not (in_place and _is_known_to_be_one(factor)):
                _multiply(gradient, factor, out)
            scaled.append(out)
        return None, *scaled, *(None for _ in scaled)


def _is_known_to_be_one(factor: Tensor) -> bool:
    # To read it from another device would mean waiting for that.
    return factor.device.type == "cpu" and factor.item() == 1


def _multiply(gradient: Tensor, factor: Tensor, out: Tensor) -> None:
    if not runs_triton("auto", gradient):
        torch.mul(gradient, factor, out=out)
        return
    from unibert_kernels.fused.rounding import scale

    scale(gradient, factor, out)
