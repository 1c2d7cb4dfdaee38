"""KL(teacher || student) over a shared vocabulary between two linear heads, with optional cross-entropy.

For a row with student logits s and teacher logits t, temperature T, p_T(z) = softmax(z / T), LSE_T(z) = LSE(z / T):

    kl = Σ_v p_T(t)_v (log p_T(t)_v - log p_T(s)_v)  =  Σ_v p_T(t)_v (t_v - s_v) / T  -  LSE_T(t) + LSE_T(s)
    ce = LSE(s) - s_y                                                             (at temperature 1)
    loss = κ kl + α ce                      κ = kl_weight T² if scale_by_temperature_squared, else kl_weight
    ∂loss/∂s = (κ / T) (p_T(s) - p_T(t)) + α (softmax(s) - onehot(y))             α = ce_weight

T² keeps the size of the KL's gradient when T changes (Hinton et al. 2015, arXiv 1503.02531, section 2). The second
form of kl needs one pass over both heads and five running numbers per row (LSE(s), LSE_T(s), LSE_T(t), the expectation,
s_y); the first suffers less from cancellation. The teacher is a constant: it gets no gradient.
The matrix products that turn ∂loss/∂s into gradients of the student's head are those of `mlm_head`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unibert_kernels import operators
from unibert_kernels.arguments import DistillationOptions
from unibert_kernels.labels import nan_if_any, replace_invalid
from unibert_kernels.language_sums import check_languages, sums_by_language
from unibert_kernels.linear_head import Head
from unibert_kernels.paths import DISTILLATION_PATHS, check_path
from unibert_kernels.precomputed_gradients import attach_gradients


class DistillationOutput(NamedTuple):
    """Result of `distillation_loss`; only ``loss`` is differentiable. Means are over the counted rows, 0 if none."""

    loss: Tensor
    """() fp32 (fp64 for fp64 inputs), nats: κ ``kl`` + α ``ce``."""
    kl: Tensor
    """() like loss: mean KL(teacher || student) at the temperature, without T² and weight."""
    ce: Tensor
    """() like loss: mean cross-entropy at temperature 1, without weight; 0 without labels."""
    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    """() int64: counted rows."""
    correct: Tensor
    """() int64: counted rows whose label has the student's largest logit; 0 without labels."""
    per_language: Tensor
    """(num_languages, 3) fp32: sum of the rows' cross-entropies as in ``ce``, count, hits; (0, 3) without lang_ids."""


def distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    kl_weight: float = 1.0,
    ce_weight: float = 0.0,
    scale_by_temperature_squared: bool = True,
    lang_ids: Tensor | None = None,
    num_languages: int | None = None,
    ignore_index: int = -100,
    path: str = "auto",
    max_workspace: int | None = None,
) -> DistillationOutput:
    """Mean over rows of ``kl_weight · T² · KL(teacher || student) + ce_weight · cross-entropy``; see the module.

    Precision, autocast and determinism are as in `unibert_kernels.mlm_head_loss`. Student and teacher may differ in
    hidden size and dtype but share one vocabulary.

    Args:
        student_hidden: (N, H_s).
        student_weight: (V, H_s).
        teacher_hidden: (N, H_t), the same rows.
        teacher_weight: (V, H_t).
        labels: (N,) int64 in 0 … V-1; a row with ``ignore_index`` counts neither in the KL nor in the cross-entropy,
            any other label outside 0 … V-1 makes loss and gradients NaN. Without labels every row counts.
        student_bias: (V,).
        teacher_bias: (V,).
        temperature: T, above 0.
        kl_weight: weight of the KL.
        ce_weight: α; needs ``labels`` unless 0.
        scale_by_temperature_squared: whether the KL is multiplied by T².
        lang_ids: (N,) int64 language of each row, with ``num_languages``, for ``per_language``.
        num_languages: rows of ``per_language``.
        ignore_index: the label of rows that do not count.
        path: one of `unibert_kernels.DISTILLATION_PATHS`; see `unibert_kernels.paths`.
        max_workspace: maximum bytes of the teacher's logits that store-teacher keeps at a time; by default a sixteenth
            of the device's memory.

    Raises:
        ValueError: if shapes do not fit, the temperature is not above 0, ``ce_weight`` comes without labels, or the
            path is unknown or cannot serve the tensors.
    """
    check_path(path, DISTILLATION_PATHS)
    num_rows, vocab_size = len(student_hidden), len(student_weight)
    for model, hidden, weight, bias in (
        ("student", student_hidden, student_weight, student_bias),
        ("teacher", teacher_hidden, teacher_weight, teacher_bias),
    ):
        if hidden.ndim != 2 or len(hidden) != num_rows:
            raise ValueError(f"{model}_hidden: needs shape ({num_rows}, H), got {tuple(hidden.shape)}")
        if weight.shape != (vocab_size, hidden.shape[1]):
            raise ValueError(
                f"{model}_weight: needs shape ({vocab_size}, {hidden.shape[1]}), the student's vocabulary by the "
                f"{model}'s hidden size; got {tuple(weight.shape)}"
            )
        if bias is not None and bias.shape != (vocab_size,):
            raise ValueError(f"{model}_bias: needs shape ({vocab_size},), got {tuple(bias.shape)}")
    if labels is not None and labels.shape != (num_rows,):
        raise ValueError(f"labels: needs shape ({num_rows},), one label per row, got {tuple(labels.shape)}")
    if labels is None and ce_weight != 0:
        raise ValueError(f"ce_weight: {ce_weight} needs labels")
    kl_factor = kl_weight * (temperature**2 if scale_by_temperature_squared else 1.0)
    options = DistillationOptions(temperature, kl_factor, ce_weight)
    check_languages(lang_ids, num_languages, num_rows)

    if labels is None:
        counted = torch.ones(num_rows, dtype=torch.bool, device=student_hidden.device)
        invalid = ~counted
    else:
        counted = labels != ignore_index
        labels, invalid = replace_invalid(labels, counted, vocab_size)
    student = Head.of(student_hidden, student_weight, student_bias)
    teacher = Head.of(teacher_hidden, teacher_weight, teacher_bias)
    row_kl, row_ce, row_hits, early_divisor, gradients = operators.distillation(
        student, teacher, labels, counted, options, path, max_workspace
    )
    row_ce = row_ce.masked_fill(invalid, torch.nan)
    row_losses = kl_factor * row_kl + ce_weight * row_ce
    count = counted.sum()
    divisor = count.clamp(min=1)
    loss = attach_gradients(row_losses.sum() / early_divisor, student.tensors, gradients)
    return DistillationOutput(
        loss=loss / (divisor / early_divisor) * nan_if_any(invalid),
        kl=row_kl.sum() / divisor,
        ce=row_ce.sum() / divisor,
        count=count,
        correct=row_hits.sum(),
        per_language=sums_by_language([row_ce, counted, row_hits], lang_ids, num_languages),
    )
