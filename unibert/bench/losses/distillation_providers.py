"""Providers of KL(teacher || student) between two linear heads: UniBERT's paths, eager, compiled, Liger's fused JSD."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from unibert_kernels import distillation_loss

from unibert.bench.availability import NotAvailableError, require_package
from unibert.bench.losses.inputs import TEMPERATURE, DistillationInputs
from unibert.bench.losses.provider import (
    LossFunction,
    Provider,
    raise_if_bias,
    raise_if_not_cuda,
    single_candidate,
)

LIGER_BUDGETS = (32, 64, 128, 256)


def _unibert(path: str) -> Provider:
    def loss(inputs: DistillationInputs) -> Tensor:
        return distillation_loss(
            inputs.hidden,
            inputs.weight,
            inputs.teacher_hidden,
            inputs.teacher_weight,
            student_bias=inputs.bias,
            teacher_bias=inputs.teacher_bias,
            temperature=TEMPERATURE,
            scale_by_temperature_squared=False,
            path=path,
        ).loss

    return Provider(f"UniBERT {path}", "ours", single_candidate(loss))


def _eager(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    bias: Tensor | None,
    teacher_bias: Tensor | None,
) -> Tensor:
    student = (F.linear(hidden, weight, bias).float() / TEMPERATURE).log_softmax(1)
    teacher = (F.linear(teacher_hidden, teacher_weight, teacher_bias).float() / TEMPERATURE).log_softmax(1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _heads(inputs: DistillationInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight


def _compiled(inputs: DistillationInputs) -> dict[str, LossFunction]:
    compiled = torch.compile(_eager, dynamic=False)
    return {"": lambda: compiled(*_heads(inputs), inputs.bias, inputs.teacher_bias)}


def _liger(inputs: DistillationInputs) -> Any:
    raise_if_not_cuda(inputs.hidden, "liger-kernel")
    raise_if_bias(inputs.bias, "Liger's fused JSD")
    from liger_kernel.ops import fused_linear_jsd

    return fused_linear_jsd


def _liger_loss(module: Any, inputs: DistillationInputs) -> Tensor:
    # No labels, beta 0 for KL(teacher || student), no label ignored.
    loss: Tensor = module.LigerFusedLinearJSDFunction.apply(*_heads(inputs), None, 0.0, -100, TEMPERATURE)
    return loss


def _liger_default(inputs: DistillationInputs) -> dict[str, LossFunction]:
    module = _liger(inputs)
    return {"": lambda: _liger_loss(module, inputs)}


def _liger_tuned(inputs: DistillationInputs) -> dict[str, LossFunction]:
    """Candidates by the chunk's budget of elements, which Liger fixes for each device: multiples of N x H."""
    module = _liger(inputs)
    if not hasattr(module, "_CHUNK_MEM_CONST_B300") or not hasattr(module, "_max_capability"):
        raise NotAvailableError(f"liger-kernel {require_package('liger-kernel')} has no chunk budget to tune")

    def candidate(budget: int) -> LossFunction:
        def loss() -> Tensor:
            before = module._CHUNK_MEM_CONST_B300, module._max_capability
            module._CHUNK_MEM_CONST_B300, module._max_capability = budget, lambda device=None: 103
            try:
                return _liger_loss(module, inputs)
            finally:
                module._CHUNK_MEM_CONST_B300, module._max_capability = before

        return loss

    return {f"chunk budget patched to {budget} x N x H": candidate(budget) for budget in LIGER_BUDGETS}


PROVIDERS = (
    _unibert("chunked"),
    _unibert("recompute"),
    _unibert("store-teacher"),
    Provider(
        "eager",
        "peer",
        single_candidate(lambda inputs: _eager(*_heads(inputs), inputs.bias, inputs.teacher_bias)),
    ),
    Provider("torch.compile", "peer", _compiled),
    Provider("Liger JSD, default", "peer", _liger_default, "default"),
    Provider("Liger JSD, tuned", "peer", _liger_tuned, "tuned"),
)
