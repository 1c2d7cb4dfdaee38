"""Errors of a provider's loss and gradients against float64 on the same rounded inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from unibert_kernels import reference

from unibert.bench.losses.inputs import TEMPERATURE, AdversaryInputs, DistillationInputs, Inputs, MLMInputs
from unibert.bench.losses.provider import LossFunction

CHUNK_ELEMENTS = 2**25
"""Maximum logits in float64 at a time: 256 MiB."""
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Maximum relative gradient error of an accurate provider: several times what rounding explains (1e-2 from bf16 logits,
1e-3 from tf32 products)."""


@dataclass
class Reference:
    """Results in float64."""

    loss: float
    gradients: dict[str, Tensor]
    """Gradients of ``hidden`` and ``weight``."""


@dataclass
class Errors:
    """Absolute error of the loss in nats, and relative errors of gradients in the Frobenius norm."""

    loss: float
    hidden: float
    weight: float

    def within(self, dtype: torch.dtype) -> bool:
        """Whether rounding in ``dtype`` can explain the errors."""
        return max(self.loss, self.hidden, self.weight) <= TOLERANCES[dtype]


@torch.no_grad()
def compute_reference(inputs: Inputs) -> Reference:
    """Compute loss and gradients in float64; logits over the vocabulary are computed for a chunk of rows at a time."""
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
    loss_sum = 0.0
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
            loss_sum -= log_p.gather(1, labels).sum().item()
            gradient = log_p.exp_().scatter_add_(1, labels, -torch.ones_like(hidden[:, :1]))
        else:
            assert isinstance(inputs, DistillationInputs)
            assert teacher is not None
            log_p = (logits / TEMPERATURE).log_softmax(1)
            teacher_logits = inputs.teacher_hidden[rows].double() @ teacher.t()
            if teacher_bias is not None:
                teacher_logits += teacher_bias
            log_q = (teacher_logits / TEMPERATURE).log_softmax(1)
            loss_sum += (log_q.exp() * (log_q - log_p)).sum().item()
            gradient = (log_p.exp_() - log_q.exp_()) / TEMPERATURE
        hidden_gradients.append(gradient @ weight / num_rows)
        weight_gradient += gradient.t() @ hidden
    gradients = {"hidden": torch.cat(hidden_gradients), "weight": weight_gradient / num_rows}
    return Reference(loss_sum / num_rows, gradients)


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


def measure_errors(function: LossFunction, inputs: Inputs, expected: Reference) -> Errors:
    """Run ``function``, a provider's loss of ``inputs``, forward and backward once and compare with ``expected``."""
    for leaf in inputs.leaves.values():
        leaf.grad = None
    loss = function()
    loss.backward()
    distances = {}
    for name, gradient in expected.gradients.items():
        actual = inputs.leaves[name].grad
        if actual is None:
            distances[name] = float("inf")
        else:
            distances[name] = float(((actual.double() - gradient).norm() / gradient.norm()).nan_to_num(float("inf")))
    for leaf in inputs.leaves.values():
        leaf.grad = None
    return Errors(abs(loss.item() - expected.loss), distances["hidden"], distances["weight"])
