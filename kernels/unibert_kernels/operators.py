"""Each loss's results and gradients by the path that is asked for: the one place between mathematics and paths.

Eager mode calls straight through. Under torch.compile the same call is an operator, ``unibert_kernels::mlm_head``,
``::distillation`` or ``::adversary``, that the compiler takes as it is: it knows the shapes and dtypes of the results,
with sizes that may vary, and nothing of chunks, kernels or the choice of a path, which is made when the operator runs.
An operator takes no part in autograd: it returns gradients, which `attach_gradients` gives to autograd outside of it.
"""

# torch.library reads the annotations of operators as types, so that they must not be strings.
from collections.abc import Sequence

import torch
from torch import Tensor

from unibert_kernels import chunked
from unibert_kernels.labels import nan_if_any, replace_invalid
from unibert_kernels.linear_head import Head
from unibert_kernels.paths import choose_head_path, choose_path, default_workspace, runs_triton
from unibert_kernels.precomputed_gradients import attach_gradients, wants_gradient
from unibert_kernels.products import accumulator_dtype

MAX_FUSED_LANGUAGES = 256
"""``fused`` holds a tile's logits over all languages in registers."""

Gradients = tuple[Tensor | None, ...]
Wants = tuple[bool, ...]
Discriminator = tuple[Tensor, Tensor, Tensor, Tensor]


def mlm_head(
    head: Head,
    rows: Tensor | None,
    labels: Tensor,
    counted: Tensor,
    label_smoothing: float,
    z_loss: float,
    path: str,
    max_workspace: int | None,
) -> tuple[Tensor, Tensor, Gradients]:
    """As `chunked.mlm_head`, by ``path``; gradients are kept in fp32, fp64, or bf16 as `_gradient_dtypes` says."""
    wants = wants_gradient(*head.tensors)
    rest = rows, labels, counted, label_smoothing, z_loss, path, max_workspace
    if not torch.compiler.is_compiling():
        return _mlm_head(head, wants, *rest)
    losses, hits, *gradients = mlm_head_operator(*_detached(head), wants, *rest)
    return losses, hits, _only_wanted(gradients, wants)


def distillation(
    student: Head,
    teacher: Head,
    labels: Tensor | None,
    counted: Tensor,
    temperature: float,
    kl_factor: float,
    ce_weight: float,
    path: str,
    max_workspace: int | None,
) -> tuple[Tensor, Tensor, Tensor, Gradients]:
    """As `chunked.distillation`, by ``path``; gradients are kept as in `mlm_head`."""
    wants = wants_gradient(*student.tensors)
    rest = labels, counted, temperature, kl_factor, ce_weight, path, max_workspace
    if not torch.compiler.is_compiling():
        return _distillation(student, teacher, wants, *rest)
    divergences, cross_entropies, hits, *gradients = distillation_operator(
        *_detached(student), *_detached(teacher), wants, *rest
    )
    return divergences, cross_entropies, hits, _only_wanted(gradients, wants)


def adversary(
    hidden: Tensor,
    document_ids: Tensor,
    languages: Tensor,
    discriminator: Discriminator,
    reversal: Tensor,
    level: str,
    objective: str,
    class_weights: Tensor | None,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """() each: the loss, differentiable with respect to hidden and ``discriminator``, Ω, number of samples, hits.

    ``languages`` may be any numbers: one that is no language makes the loss and its gradients NaN.
    """
    inputs = hidden, *discriminator
    wants = wants_gradient(*inputs)
    rest = reversal, level, objective, class_weights
    compiling = torch.compiler.is_compiling()
    if not compiling and _adversary_path(path, hidden, discriminator) == "fused":
        # Triton is not to be had everywhere.
        from unibert_kernels.fused import adversary as fused

        return fused.adversary(hidden, document_ids, languages, discriminator, wants, *rest)
    _, _, w2, _ = discriminator
    languages, invalid = replace_invalid(languages, torch.ones_like(languages, dtype=torch.bool), len(w2))
    if compiling:
        loss, weight_sum, count, correct, *kept = adversary_operator(
            hidden.detach(), document_ids, languages, *(tensor.detach() for tensor in discriminator), wants, *rest, path
        )
        gradients = _only_wanted(kept, wants)
    else:
        loss, weight_sum, count, correct, gradients = chunked.adversary(
            hidden, document_ids, languages, discriminator, wants, *rest
        )
    return attach_gradients(loss, inputs, gradients) * nan_if_any(invalid), weight_sum, count, correct


@torch.library.custom_op("unibert_kernels::mlm_head", mutates_args=())
def mlm_head_operator(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    wants: Sequence[bool],
    rows: Tensor | None,
    labels: Tensor,
    counted: Tensor,
    label_smoothing: float,
    z_loss: float,
    path: str,
    max_workspace: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Row losses, hits, and three gradients, empty where none is wanted."""
    losses, hits, gradients = _mlm_head(
        Head(hidden, weight, bias, dtype),
        tuple(wants),
        rows,
        labels,
        counted,
        label_smoothing,
        z_loss,
        path,
        max_workspace,
    )
    of_hidden, of_weight, of_bias = _empty_for_none(gradients, losses)
    return losses, hits, of_hidden, of_weight, of_bias


@mlm_head_operator.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    wants: Sequence[bool],
    rows: Tensor | None,
    labels: Tensor,
    counted: Tensor,
    label_smoothing: float,
    z_loss: float,
    path: str,
    max_workspace: int | None,
) -> tuple[Tensor, ...]:
    head = Head(hidden, weight, bias, dtype)
    dtypes = _gradient_dtypes(head, runs_triton(path, hidden, weight))
    losses = labels.new_empty(labels.shape, dtype=accumulator_dtype(hidden, weight))
    return losses, torch.empty_like(counted), *_like_gradients(head.tensors, dtypes, wants, losses)


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
    wants: Sequence[bool],
    labels: Tensor | None,
    counted: Tensor,
    temperature: float,
    kl_factor: float,
    ce_weight: float,
    path: str,
    max_workspace: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Row KL, row cross-entropy, hits, and three gradients, empty where none is wanted."""
    student = Head(student_hidden, student_weight, student_bias, student_dtype)
    teacher = Head(teacher_hidden, teacher_weight, teacher_bias, teacher_dtype)
    divergences, cross_entropies, hits, gradients = _distillation(
        student, teacher, tuple(wants), labels, counted, temperature, kl_factor, ce_weight, path, max_workspace
    )
    of_hidden, of_weight, of_bias = _empty_for_none(gradients, divergences)
    return divergences, cross_entropies, hits, of_hidden, of_weight, of_bias


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
    wants: Sequence[bool],
    labels: Tensor | None,
    counted: Tensor,
    temperature: float,
    kl_factor: float,
    ce_weight: float,
    path: str,
    max_workspace: int | None,
) -> tuple[Tensor, ...]:
    student = Head(student_hidden, student_weight, student_bias, student_dtype)
    triton = runs_triton(path, student_hidden, student_weight, teacher_hidden, teacher_weight)
    divergences = counted.new_empty(counted.shape, dtype=accumulator_dtype(student_hidden, student_weight))
    gradients = _like_gradients(student.tensors, _gradient_dtypes(student, triton), wants, divergences)
    return divergences, torch.empty_like(divergences), torch.empty_like(counted), *gradients


@torch.library.custom_op("unibert_kernels::adversary", mutates_args=())
def adversary_operator(
    hidden: Tensor,
    document_ids: Tensor,
    languages: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    wants: Sequence[bool],
    reversal: Tensor,
    level: str,
    objective: str,
    class_weights: Tensor | None,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, Ω, number of samples, hits, and five gradients, empty where none is wanted."""
    discriminator = w1, b1, w2, b2
    compute = chunked.adversary
    if _adversary_path(path, hidden, discriminator) == "fused":
        from unibert_kernels.fused.adversary import adversary_with_gradients as compute
    loss, weight_sum, count, correct, gradients = compute(
        hidden, document_ids, languages, discriminator, tuple(wants), reversal, level, objective, class_weights
    )
    of_hidden, of_w1, of_b1, of_w2, of_b2 = _empty_for_none(gradients, loss)
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
    wants: Sequence[bool],
    reversal: Tensor,
    level: str,
    objective: str,
    class_weights: Tensor | None,
    path: str,
) -> tuple[Tensor, ...]:
    inputs = hidden, w1, b1, w2, b2
    dtype = accumulator_dtype(*inputs)
    loss, weight_sum = (hidden.new_empty((), dtype=dtype) for _ in range(2))
    count, correct = (hidden.new_empty((), dtype=torch.int64) for _ in range(2))
    return loss, weight_sum, count, correct, *_like_gradients(inputs, (dtype,) * 5, wants, loss)


def _mlm_head(
    head: Head,
    wants: Wants,
    rows: Tensor | None,
    labels: Tensor,
    counted: Tensor,
    label_smoothing: float,
    z_loss: float,
    path: str,
    max_workspace: int | None,
) -> tuple[Tensor, Tensor, Gradients]:
    hidden, weight, _ = head.tensors
    workspace = default_workspace(hidden.device) if max_workspace is None else max_workspace
    path = choose_head_path(
        "mlm_head_loss", path, "exp-store", workspace, len(labels), hidden, weight, operands=head.dtype
    )
    if path == "chunked":
        return chunked.mlm_head(head, wants, rows, labels, counted, label_smoothing, z_loss)
    from unibert_kernels.fused import mlm_head as fused

    return fused.mlm_head(head, wants, rows, labels, counted, label_smoothing, z_loss, path, workspace)


def _distillation(
    student: Head,
    teacher: Head,
    wants: Wants,
    labels: Tensor | None,
    counted: Tensor,
    temperature: float,
    kl_factor: float,
    ce_weight: float,
    path: str,
    max_workspace: int | None,
) -> tuple[Tensor, Tensor, Tensor, Gradients]:
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
    common = student, teacher, wants, labels, counted, temperature, kl_factor, ce_weight
    if path == "chunked":
        return chunked.distillation(*common)
    from unibert_kernels.fused import distillation as fused

    return fused.distillation(*common, path, workspace)


def _adversary_path(path: str, hidden: Tensor, discriminator: Discriminator) -> str:
    """``chunked`` or ``fused``; ValueError for ``fused`` where it cannot run."""
    w1, _, w2, _ = discriminator
    if len(w2) > MAX_FUSED_LANGUAGES:
        if path == "fused":
            raise ValueError(f"path: fused takes up to {MAX_FUSED_LANGUAGES} languages, got {len(w2)}")
        return "chunked"
    return choose_path("adversary_loss", path, "fused", hidden, w1, w2)


def _gradient_dtypes(head: Head, triton: bool) -> tuple[torch.dtype, ...]:
    """What the gradients of a head's three tensors are kept in."""
    if not triton:
        return (accumulator_dtype(head.hidden, head.weight),) * 3
    from unibert_kernels.fused.head import gradient_dtypes

    return gradient_dtypes(head)


def _detached(head: Head) -> tuple[Tensor, Tensor, Tensor | None, torch.dtype]:
    hidden, weight, bias, dtype = head
    return hidden.detach(), weight.detach(), None if bias is None else bias.detach(), dtype


def _only_wanted(gradients: list[Tensor], wants: Wants) -> Gradients:
    return tuple(gradient if wanted else None for gradient, wanted in zip(gradients, wants, strict=True))


def _empty_for_none(gradients: Gradients, like: Tensor) -> tuple[Tensor, ...]:
    """Operators return tensors, never None."""
    return tuple(like.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _like_gradients(
    inputs: tuple[Tensor | None, ...], dtypes: tuple[torch.dtype, ...], wants: Sequence[bool], like: Tensor
) -> tuple[Tensor, ...]:
    """Tensors of the shapes and dtypes that the gradients of ``inputs`` will have."""
    return tuple(
        tensor.new_empty(tensor.shape, dtype=dtype) if wanted and tensor is not None else like.new_empty(0)
        for tensor, dtype, wanted in zip(inputs, dtypes, wants, strict=True)
    )
