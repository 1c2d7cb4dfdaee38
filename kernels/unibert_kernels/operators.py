"""Dispatch of each loss to a path, in eager mode and under torch.compile.

Eager mode calls the path directly. Under torch.compile the call is an operator, ``unibert_kernels::mlm_head``,
``::distillation`` or ``::adversary``, which the compiler does not look into: it knows shapes and dtypes of the results,
with sizes that may vary, but neither chunks nor kernels. The path is chosen when the operator runs. An operator takes
no part in autograd: it returns gradients, which `attach_gradients` hands to autograd outside of it.
"""

# torch.library reads the annotations of operators, so they must be types, not strings: no __future__ annotations.
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from unibert_kernels import chunked
from unibert_kernels.arguments import AdversaryInputs, AdversaryOptions, DistillationOptions, MLMHeadOptions
from unibert_kernels.labels import nan_if_any, replace_invalid
from unibert_kernels.linear_head import Head
from unibert_kernels.paths import choose_head_path, choose_path, default_workspace, runs_triton
from unibert_kernels.precomputed_gradients import attach_gradients, needs_gradient
from unibert_kernels.products import accumulator_dtype

MAX_FUSED_LANGUAGES = 256
"""Maximum for ``fused``, which holds a tile's logits over all languages in registers."""

Gradients = tuple[Tensor | None, ...]
NeedsGrad = tuple[bool, ...]


def mlm_head(
    head: Head, labels: Tensor, counted: Tensor, options: MLMHeadOptions, path: str, max_workspace: int | None
) -> tuple[Tensor, Tensor, Tensor, Gradients]:
    """As `chunked.mlm_head`, by ``path``; gradients have the dtypes of `_gradient_dtypes`."""
    needs_grad = needs_gradient(*head.tensors)
    if not torch.compiler.is_compiling():
        return _mlm_head(head, needs_grad, labels, counted, options, path, max_workspace)
    losses, hits, divisor, *gradients = mlm_head_operator(
        *_detached(head), needs_grad, labels, counted, path, max_workspace, *_flat(options)
    )
    return losses, hits, divisor, _only_needed(gradients, needs_grad)


def distillation(
    student: Head,
    teacher: Head,
    labels: Tensor | None,
    counted: Tensor,
    options: DistillationOptions,
    path: str,
    max_workspace: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Gradients]:
    """As `chunked.distillation`, by ``path``; gradients have the dtypes of `_gradient_dtypes`."""
    needs_grad = needs_gradient(*student.tensors)
    if not torch.compiler.is_compiling():
        return _distillation(student, teacher, needs_grad, labels, counted, options, path, max_workspace)
    divergences, cross_entropies, hits, divisor, *gradients = distillation_operator(
        *_detached(student), *_detached(teacher), needs_grad, labels, counted, path, max_workspace, *_flat(options)
    )
    return divergences, cross_entropies, hits, divisor, _only_needed(gradients, needs_grad)


def adversary(inputs: AdversaryInputs, options: AdversaryOptions, path: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """() each: the loss, differentiable with respect to hidden and the discriminator, Ω, number of samples, hits.

    A language outside 0 … L-1 makes the loss and its gradients NaN.
    """
    needs_grad = needs_gradient(*inputs.differentiable)
    compiling = torch.compiler.is_compiling()
    if not compiling and _adversary_path(path, inputs) == "fused":
        # Imported here because Triton is not available everywhere.
        from unibert_kernels.fused import adversary as fused

        return fused.adversary(inputs, needs_grad, options)
    given = inputs.languages
    languages, invalid = replace_invalid(given, torch.ones_like(given, dtype=torch.bool), len(inputs.w2))
    valid = inputs._replace(languages=languages)
    if compiling:
        detached = (None if tensor is None else tensor.detach() for tensor in valid)
        loss, weight_sum, count, correct, *returned = adversary_operator(*detached, needs_grad, path, *_flat(options))
        gradients = _only_needed(returned, needs_grad)
    else:
        loss, weight_sum, count, correct, gradients = chunked.adversary(valid, needs_grad, options)
    loss = attach_gradients(loss, inputs.differentiable, gradients)
    return loss * nan_if_any(invalid), weight_sum, count, correct


@torch.library.custom_op("unibert_kernels::mlm_head", mutates_args=())
def mlm_head_operator(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    needs_grad: Sequence[bool],
    labels: Tensor,
    counted: Tensor,
    path: str,
    max_workspace: int | None,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Row losses, hits, divisor, and three gradients, empty where none is needed."""
    head, options = Head(hidden, weight, bias, dtype), MLMHeadOptions(label_smoothing, z_loss)
    losses, hits, divisor, gradients = _mlm_head(head, tuple(needs_grad), labels, counted, options, path, max_workspace)
    of_hidden, of_weight, of_bias = _empty_instead_of_none(gradients, losses)
    return losses, hits, divisor, of_hidden, of_weight, of_bias


@mlm_head_operator.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    needs_grad: Sequence[bool],
    labels: Tensor,
    counted: Tensor,
    path: str,
    *_: object,
) -> tuple[Tensor, ...]:
    head = Head(hidden, weight, bias, dtype)
    dtypes = _gradient_dtypes(head, runs_triton(path, hidden, weight))
    losses = labels.new_empty(labels.shape, dtype=accumulator_dtype(hidden, weight))
    gradients = _empty_gradients(head.tensors, dtypes, needs_grad, losses)
    return losses, torch.empty_like(counted), losses.new_empty(()), *gradients


@torch.library.custom_op("unibert_kernels::distillation", mutates_args=())
def distillation_operator(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    student_dtype: torch.dtype,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    teacher_dtype: torch.dtype,
    needs_grad: Sequence[bool],
    labels: Tensor | None,
    counted: Tensor,
    path: str,
    max_workspace: int | None,
    temperature: float,
    kl_factor: float,
    ce_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Row KL, row cross-entropy, hits, divisor, and three gradients, empty where none is needed."""
    student = Head(student_hidden, student_weight, student_bias, student_dtype)
    teacher = Head(teacher_hidden, teacher_weight, teacher_bias, teacher_dtype)
    options = DistillationOptions(temperature, kl_factor, ce_weight)
    divergences, cross_entropies, hits, divisor, gradients = _distillation(
        student, teacher, tuple(needs_grad), labels, counted, options, path, max_workspace
    )
    of_hidden, of_weight, of_bias = _empty_instead_of_none(gradients, divergences)
    return divergences, cross_entropies, hits, divisor, of_hidden, of_weight, of_bias


@distillation_operator.register_fake
def _(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    student_dtype: torch.dtype,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    teacher_dtype: torch.dtype,
    needs_grad: Sequence[bool],
    labels: Tensor | None,
    counted: Tensor,
    path: str,
    *_: object,
) -> tuple[Tensor, ...]:
    student = Head(student_hidden, student_weight, student_bias, student_dtype)
    triton = runs_triton(path, student_hidden, student_weight, teacher_hidden, teacher_weight)
    divergences = counted.new_empty(counted.shape, dtype=accumulator_dtype(student_hidden, student_weight))
    gradients = _empty_gradients(student.tensors, _gradient_dtypes(student, triton), needs_grad, divergences)
    hits = torch.empty_like(counted)
    return divergences, torch.empty_like(divergences), hits, divergences.new_empty(()), *gradients


@torch.library.custom_op("unibert_kernels::adversary", mutates_args=())
def adversary_operator(
    hidden: Tensor,
    document_ids: Tensor,
    languages: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    reversal: Tensor,
    class_weights: Tensor | None,
    needs_grad: Sequence[bool],
    path: str,
    level: str,
    objective: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, Ω, number of samples, hits, and five gradients, empty where none is needed."""
    inputs = AdversaryInputs(hidden, document_ids, languages, w1, b1, w2, b2, reversal, class_weights)
    compute = chunked.adversary
    if _adversary_path(path, inputs) == "fused":
        from unibert_kernels.fused.adversary import adversary_with_gradients as compute
    loss, weight_sum, count, correct, gradients = compute(inputs, tuple(needs_grad), AdversaryOptions(level, objective))
    of_hidden, of_w1, of_b1, of_w2, of_b2 = _empty_instead_of_none(gradients, loss)
    return loss, weight_sum, count, correct, of_hidden, of_w1, of_b1, of_w2, of_b2


@adversary_operator.register_fake
def _(
    hidden: Tensor,
    document_ids: Tensor,
    languages: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    reversal: Tensor,
    class_weights: Tensor | None,
    needs_grad: Sequence[bool],
    *_: object,
) -> tuple[Tensor, ...]:
    differentiable = hidden, w1, b1, w2, b2
    dtype = accumulator_dtype(*differentiable)
    loss, weight_sum = (hidden.new_empty((), dtype=dtype) for _ in range(2))
    count, correct = (hidden.new_empty((), dtype=torch.int64) for _ in range(2))
    return loss, weight_sum, count, correct, *_empty_gradients(differentiable, (dtype,) * 5, needs_grad, loss)


def _mlm_head(
    head: Head,
    needs_grad: NeedsGrad,
    labels: Tensor,
    counted: Tensor,
    options: MLMHeadOptions,
    path: str,
    max_workspace: int | None,
) -> tuple[Tensor, Tensor, Tensor, Gradients]:
    hidden, weight, _ = head.tensors
    workspace = default_workspace(hidden.device) if max_workspace is None else max_workspace
    path = choose_head_path(
        "mlm_head_loss", path, "exp-store", workspace, len(labels), hidden, weight, operands=head.dtype
    )
    if path == "chunked":
        return chunked.mlm_head(head, needs_grad, labels, counted, options)
    from unibert_kernels.fused import mlm_head as fused

    losses, hits, gradients = fused.mlm_head(head, needs_grad, labels, counted, options, path, workspace)
    return losses, hits, losses.new_ones(()), gradients


def _distillation(
    student: Head,
    teacher: Head,
    needs_grad: NeedsGrad,
    labels: Tensor | None,
    counted: Tensor,
    options: DistillationOptions,
    path: str,
    max_workspace: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Gradients]:
    workspace = default_workspace(counted.device) if max_workspace is None else max_workspace
    path = choose_head_path(
        "distillation_loss",
        path,
        "store-teacher",
        workspace,
        len(counted),
        student.hidden,
        student.weight,
        teacher.hidden,
        teacher.weight,
        operands=student.dtype,
    )
    if path == "chunked":
        return chunked.distillation(student, teacher, needs_grad, labels, counted, options)
    from unibert_kernels.fused import distillation as fused

    divergences, cross_entropies, hits, gradients = fused.distillation(
        student, teacher, needs_grad, labels, counted, options, path, workspace
    )
    return divergences, cross_entropies, hits, divergences.new_ones(()), gradients


def _adversary_path(path: str, inputs: AdversaryInputs) -> str:
    """``chunked`` or ``fused``; ValueError for ``fused`` where it cannot run."""
    num_languages = len(inputs.w2)
    if num_languages > MAX_FUSED_LANGUAGES:
        if path == "fused":
            raise ValueError(f"path: fused takes up to {MAX_FUSED_LANGUAGES} languages, got {num_languages}")
        return "chunked"
    return choose_path("adversary_loss", path, "fused", inputs.hidden, inputs.w1, inputs.w2)


def _gradient_dtypes(head: Head, triton: bool) -> tuple[torch.dtype, ...]:
    """Dtypes of the gradients of a head's three tensors between the passes."""
    if not triton:
        return (accumulator_dtype(head.hidden, head.weight),) * 3
    from unibert_kernels.fused.head import gradient_dtypes

    return gradient_dtypes(head)


def _detached(head: Head) -> tuple[Tensor, Tensor, Tensor | None, torch.dtype]:
    hidden, weight, bias, dtype = head
    return hidden.detach(), weight.detach(), None if bias is None else bias.detach(), dtype


def _only_needed(gradients: list[Tensor], needs_grad: NeedsGrad) -> Gradients:
    return tuple(gradient if needed else None for gradient, needed in zip(gradients, needs_grad, strict=True))


def _empty_instead_of_none(gradients: Gradients, like: Tensor) -> tuple[Tensor, ...]:
    """Replace None by empty tensors, since operators return only tensors."""
    return tuple(like.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _empty_gradients(
    inputs: tuple[Tensor | None, ...], dtypes: tuple[torch.dtype, ...], needs_grad: Sequence[bool], like: Tensor
) -> tuple[Tensor, ...]:
    """Uninitialised gradients of ``inputs``, empty where none is needed."""
    return tuple(
        tensor.new_empty(tensor.shape, dtype=dtype) if needed and tensor is not None else like.new_empty(0)
        for tensor, dtype, needed in zip(inputs, dtypes, needs_grad, strict=True)
    )


def _flat(options: MLMHeadOptions | DistillationOptions | AdversaryOptions) -> tuple[Any, ...]:
    """The fields in the order of the operator's last arguments. Dynamo in torch 2.11 cannot trace
    `dataclasses.astuple`."""
    return tuple(getattr(options, field.name) for field in fields(options))
