"""Naive implementations of the three losses, in float64 with autograd: the reference for tests of the faster paths.

Arguments and results are those of the public functions, without ``path``. Inputs of any dtype are converted to float64
first, and logits are materialised. On the same rounded inputs a path differs from the reference only by its own
rounding, so that tolerances follow from number formats.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unibert_kernels.adversary import AdversaryOutput
from unibert_kernels.distillation import DistillationOutput
from unibert_kernels.mlm_head import MLMHeadOutput


def mlm_head_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    lang_ids: Tensor | None = None,
    num_languages: int | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> MLMHeadOutput:
    """`unibert_kernels.mlm_head_loss` in float64."""
    logits = _logits(hidden, weight, bias)
    counted = labels != ignore_index
    losses = F.cross_entropy(
        logits, labels, reduction="none", label_smoothing=label_smoothing, ignore_index=ignore_index
    )
    losses = losses + counted * z_loss * logits.logsumexp(1) ** 2
    hits = counted & (logits.argmax(1) == labels)
    return MLMHeadOutput(
        loss=losses.sum() / max(1, int(counted.sum())),
        count=counted.sum(),
        correct=hits.sum(),
        per_language=_per_language(losses, counted, hits, lang_ids, num_languages),
    )


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
) -> DistillationOutput:
    """`unibert_kernels.distillation_loss` in float64."""
    student = _logits(student_hidden, student_weight, student_bias)
    teacher = _logits(teacher_hidden, teacher_weight, teacher_bias).detach()
    known = labels is not None
    labels = labels if labels is not None else torch.zeros(len(student), dtype=torch.int64, device=student.device)
    counted = labels != ignore_index if known else torch.ones_like(labels, dtype=torch.bool)
    log_student, log_teacher = (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    kl = counted * F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    ce = known * F.cross_entropy(student, labels, reduction="none", ignore_index=ignore_index)
    hits = known & counted & (student.argmax(1) == labels)
    losses = kl_weight * (temperature**2 if scale_by_temperature_squared else 1) * kl + ce_weight * ce
    divisor = max(1, int(counted.sum()))
    return DistillationOutput(
        loss=losses.sum() / divisor,
        kl=kl.sum() / divisor,
        ce=ce.sum() / divisor,
        count=counted.sum(),
        correct=hits.sum(),
        per_language=_per_language(ce, counted, hits, lang_ids, num_languages),
    )


def adversary_loss(
    hidden: Tensor,
    document_ids: Tensor,
    languages: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    reversal: Tensor,
    *,
    level: str = "mean",
    objective: str = "reversal",
    class_weights: Tensor | None = None,
) -> AdversaryOutput:
    """`unibert_kernels.adversary_loss` in float64, for documents that all have tokens."""
    hidden = hidden.double()
    parameters = [parameter.double() for parameter in (w1, b1, w2, b2)]
    real = document_ids >= 0
    documents, num_documents = document_ids[real], len(languages)
    labels = languages[documents] if level == "token" else languages
    weights = torch.ones_like(labels, dtype=torch.float64) if class_weights is None else class_weights.double()[labels]

    def samples(states: Tensor) -> Tensor:
        if level == "token":
            return states[real]
        if level == "cls":
            return states[[int((document_ids == document).nonzero()[0]) for document in range(num_documents)]]
        sums = states.new_zeros(num_documents, states.shape[1]).index_add(0, documents, states[real])
        return sums / documents.bincount(minlength=num_documents)[:, None]

    def logits(states: Tensor, parameters: list[Tensor]) -> Tensor:
        w1, b1, w2, b2 = parameters
        return F.linear(F.gelu(F.linear(samples(states), w1, b1)), w2, b2)

    def weighted_mean(losses: Tensor) -> Tensor:
        return (losses * weights).sum() / weights.sum()

    discriminator_logits = logits(hidden.detach(), parameters)
    loss = weighted_mean(F.cross_entropy(discriminator_logits, labels, reduction="none"))
    encoder_logits = logits(hidden, [parameter.detach() for parameter in parameters])
    if objective == "reversal":
        adverse = -weighted_mean(F.cross_entropy(encoder_logits, labels, reduction="none"))
    else:
        adverse = weighted_mean(-encoder_logits.log_softmax(1).mean(1))
    return AdversaryOutput(
        # The encoder's term has a gradient and the value 0.
        loss=loss + reversal.double() * (adverse - adverse.detach()),
        weight_sum=weights.sum(),
        count=torch.tensor(len(labels)),
        correct=(discriminator_logits.argmax(1) == labels).sum(),
    )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(hidden.double(), weight.double(), None if bias is None else bias.double())


def _per_language(
    losses: Tensor, counted: Tensor, hits: Tensor, lang_ids: Tensor | None, num_languages: int | None
) -> Tensor:
    if lang_ids is None or num_languages is None:
        return losses.new_zeros(0, 3)
    columns = torch.stack([losses.detach(), counted.double(), hits.double()], dim=1)
    return torch.stack([columns[lang_ids == language].sum(0) for language in range(num_languages)])
