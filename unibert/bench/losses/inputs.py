"""The tensors of a case: the same for every provider, process and device, since they are drawn on the CPU by seed.

**Labels** follow Zipf's law, p(v) ∝ 1 / (v + 2.7), as the ids of a tokenizer sorted by frequency do.

**uniform**, the start of a training: weights N(0, 0.02²), hidden states N(0, 1). Logits have a standard deviation of
0.02 √H (0.4 at H = 384), the loss is a little above ln V.

**trained**, a head that knows something. Weights are N(0, 0.02²) but for dimension 0, which carries the unigram
log-probabilities; every row's hidden state switches that dimension on. To it is added noise that gives each logit a
standard deviation of 1, and, in 80 % of the rows, a multiple of the label's own weight vector, such that the label's
probability has log-odds of about N(2, 2²). The other 20 % know no more than word frequencies. The loss comes out near 2
nats, the softmax's entropy near 3.3, and the label is the largest logit in 80 % of the rows: peaked in most rows and
broad in some, as in a trained masked language model. At distillation's "uniform" the teacher is a trained one too.

**Adversary**: documents of 16 to 512 tokens side by side, languages drawn evenly; hidden states N(0, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unibert.bench.losses.case import NUM_LANGUAGES, TEACHER_WIDTH, Case

INIT_STD = 0.02
TEMPERATURE = 2.0
REVERSAL = 0.5
KNOWN_ROWS = 0.8
LOG_ODDS = (2.7, 2.0)
"""Mean and standard deviation; the noise of the other logits takes some 0.7 off the mean."""


@dataclass
class MLMInputs:
    """Head over the vocabulary and rows to score; ``leaves`` are what gradients are wanted for."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    bias: Tensor | None = None

    @property
    def leaves(self) -> dict[str, Tensor]:
        named = {"hidden": self.hidden, "weight": self.weight, "bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def first(self, rows: int) -> MLMInputs:
        """The same head with the first ``rows`` rows, as leaves of their own."""
        return MLMInputs(_leaf(self.hidden[:rows]), self.weight, self.labels[:rows], self.bias)


@dataclass
class DistillationInputs:
    """Student's and teacher's head and states; KL at `TEMPERATURE`, mean over rows, no T², no cross-entropy."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    bias: Tensor | None = None
    teacher_bias: Tensor | None = None

    @property
    def leaves(self) -> dict[str, Tensor]:
        named = {"hidden": self.hidden, "weight": self.weight, "bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def first(self, rows: int) -> DistillationInputs:
        """The same heads with the first ``rows`` rows, as leaves of their own."""
        return DistillationInputs(
            _leaf(self.hidden[:rows]),
            self.weight,
            self.teacher_hidden[:rows],
            self.teacher_weight,
            self.bias,
            self.teacher_bias,
        )


@dataclass
class AdversaryInputs:
    """Arguments of `unibert_kernels.adversary_loss` at level mean; ``weight`` is the discriminator's first layer."""

    hidden: Tensor
    document_ids: Tensor
    languages: Tensor
    weight: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    reversal: Tensor

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {"hidden": self.hidden, "weight": self.weight, "b1": self.b1, "w2": self.w2, "b2": self.b2}

    def first(self, rows: int) -> AdversaryInputs:
        """All of it whatever ``rows``: documents cannot be cut, and the reference is cheap."""
        return self


Inputs = MLMInputs | DistillationInputs | AdversaryInputs


def make_inputs(case: Case, device: torch.device | str) -> Inputs:
    """Draw the tensors of ``case`` and put them on ``device`` in its dtype."""
    generator = torch.Generator().manual_seed(case.seed)
    if case.loss == "adversary":
        return _adversary_inputs(case, generator, device)

    def place(tensor: Tensor, trained: bool = True) -> Tensor:
        return tensor.to(device, case.torch_dtype).requires_grad_(trained)

    log_prior = -(torch.arange(case.vocab) + 2.7).log()
    log_prior -= log_prior.logsumexp(0)
    labels = torch.multinomial(log_prior.exp(), case.rows, replacement=True, generator=generator)
    head = _trained_head if case.distribution == "trained" else _initial_head
    hidden, weight = head(labels, log_prior, case.hidden, generator)
    bias = place(torch.randn(case.vocab, generator=generator) * 0.1) if case.bias else None
    if case.loss == "mlm":
        return MLMInputs(place(hidden), place(weight), labels.to(device), bias)
    teacher_hidden, teacher_weight = _trained_head(labels, log_prior, TEACHER_WIDTH * case.hidden, generator)
    teacher_bias = place(torch.randn(case.vocab, generator=generator) * 0.1, False) if case.bias else None
    return DistillationInputs(
        place(hidden), place(weight), place(teacher_hidden, False), place(teacher_weight, False), bias, teacher_bias
    )


def _initial_head(
    labels: Tensor, log_prior: Tensor, hidden_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hidden states (N, H) and weight (V, H), fp32; see the module's text."""
    weight = torch.randn(len(log_prior), hidden_size, generator=generator).mul_(INIT_STD)
    return torch.randn(len(labels), hidden_size, generator=generator), weight


def _trained_head(
    labels: Tensor, log_prior: Tensor, hidden_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hidden states (N, H) and weight (V, H), fp32; see the module's text."""
    length = INIT_STD * math.sqrt(hidden_size)
    hidden, weight = _initial_head(labels, log_prior, hidden_size, generator)
    mean, deviation = LOG_ODDS
    log_odds = mean + deviation * torch.randn(len(labels), generator=generator)
    known = torch.rand(len(labels), generator=generator) < KNOWN_ROWS
    gain = known * (log_odds - log_prior[labels])
    directions = weight[labels]
    hidden += directions * (gain / directions.square().sum(1) * length)[:, None]
    hidden /= length
    weight[:, 0] = INIT_STD * (log_prior - log_prior.mean())
    hidden[:, 0] = 1 / INIT_STD
    return hidden, weight


def _adversary_inputs(case: Case, generator: torch.Generator, device: torch.device | str) -> AdversaryInputs:
    lengths = torch.randint(16, 513, (1 + case.rows // 16,), generator=generator)
    documents = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[: case.rows]
    num_documents = int(documents[-1]) + 1

    def parameter(*shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=generator) * 2 - 1
        return _leaf(drawn.div_(math.sqrt(case.hidden)).to(device))

    return AdversaryInputs(
        torch.randn(case.rows, case.hidden, generator=generator).to(device, case.torch_dtype).requires_grad_(),
        documents.to(device),
        torch.randint(NUM_LANGUAGES, (num_documents,), generator=generator).to(device),
        parameter(case.hidden, case.hidden),
        parameter(case.hidden),
        parameter(NUM_LANGUAGES, case.hidden),
        parameter(NUM_LANGUAGES),
        torch.tensor(REVERSAL, device=device),
    )


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()
