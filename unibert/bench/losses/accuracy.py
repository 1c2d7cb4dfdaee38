"""How far a provider's loss and gradients are from float64 on the same rounded inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from unibert_kernels import reference

from unibert.bench.losses.inputs import TEMPERATURE, AdversaryInputs, DistillationInputs, Inputs, MLMInputs
from unibert.bench.losses.provider import LossFunction

CHUNK_ELEMENTS = 2**25
"""Logits in float64 at a time: 256 MiB."""
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Relative gradient error above which a provider computes something else: several times what rounding explains
(bf16 logits cost 1e-2, tf32 products 1e-3)."""


@dataclass
class Reference:
    """float64 results."""

    loss: float
    gradients: dict[str, Tensor]
    """Of ``hidden`` and ``weight``."""


@dataclass
class Errors:
    """``loss`` in nats; gradients as relative Frobenius norms of the difference."""

    loss: float
    hidden: float
    weight: float

    def within(self, dtype: torch.dtype) -> bool:
        """Whether rounding in ``dtype`` can explain the errors."""
        return max(self.loss, self.hidden, self.weight) <= TOLERANCES[dtype]


@torch.no_grad()
def reference_of(inputs: Inputs) -> Reference:
    """Loss and gradients in float64; over the vocabulary by chunks of rows, so that logits are never whole."""
    if isinstance(inputs, AdversaryInputs):
        return _adversary_reference(inputs)
    bias = None if inputs.bias is None else inputs.bias.double()
    teacher = teacher_bias = None
    if isinstance(inputs, DistillationInputs):
        teacher = inputs.teacher_weight.double()
        teacher_bias = None if inputs.teacher_bias is None else inputs.teacher_bias.double()
    weight = inputs.weight.double()
    num_rows = len(inputs.hidden)
    weight_gradient = torch.zeros_like(weight)
    hidden_gradients = []
    total = 0.0
    step = max(1, CHUNK_ELEMENTS // len(weight))
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        hidden = inputs.hidden[rows].double()
        logits = hidden @ weight.t()
        if bias is not None:
            logits += bias
        if isinstance(inputs, MLMInputs):
            log_p = logits.log_softmax(1)
            labels = inputs.labels[rows, None]
            total -= log_p.gather(1, labels).sum().item()
            gradient = log_p.exp_().scatter_add_(1, labels, -torch.ones_like(hidden[:, :1]))
        else:
            assert isinstance(inputs, DistillationInputs)
            assert teacher is not None
            log_p = (logits / TEMPERATURE).log_softmax(1)
            taught = inputs.teacher_hidden[rows].double() @ teacher.t()
            if teacher_bias is not None:
                taught += teacher_bias
            log_q = (taught / TEMPERATURE).log_softmax(1)
            total += (log_q.exp() * (log_q - log_p)).sum().item()
            gradient = (log_p.exp_() - log_q.exp_()) / TEMPERATURE
        hidden_gradients.append(gradient @ weight / num_rows)
        weight_gradient += gradient.t() @ hidden
    return Reference(total / num_rows, {"hidden": torch.cat(hidden_gradients), "weight": weight_gradient / num_rows})


def _adversary_reference(inputs: AdversaryInputs) -> Reference:
    copies = {name: leaf.detach().cpu().double().requires_grad_() for name, leaf in inputs.leaves.items()}
    with torch.enable_grad():
        loss = reference.adversary_loss(
            copies["hidden"],
            inputs.document_ids.cpu(),
            inputs.languages.cpu(),
            copies["weight"],
            copies["b1"],
            copies["w2"],
            copies["b2"],
            inputs.reversal.cpu(),
        ).loss
        loss.backward()
    gradients = {name: copies[name].grad.to(inputs.hidden.device) for name in ("hidden", "weight")}  # type: ignore[union-attr]
    return Reference(loss.item(), gradients)


def errors_of(function: LossFunction, inputs: Inputs, expected: Reference) -> Errors:
    """Run ``function``, a provider on ``inputs``, forward and back once and compare."""
    for leaf in inputs.leaves.values():
        leaf.grad = None
    loss = function()
    loss.backward()
    distances = {}
    for name, gradient in expected.gradients.items():
        found = inputs.leaves[name].grad
        if found is None:
            distances[name] = float("inf")
        else:
            distances[name] = float(((found.double() - gradient).norm() / gradient.norm()).nan_to_num(float("inf")))
    for leaf in inputs.leaves.values():
        leaf.grad = None
    return Errors(abs(loss.item() - expected.loss), distances["hidden"], distances["weight"])
