"""The tensors of a case, drawn on the CPU from a seed, so that every provider, process and device gets the same.

**Labels** follow Zipf's law, p(v) ∝ 1 / (v + 2.7), like the ids of a tokenizer sorted by frequency.

**uniform**, the start of training: weights N(0, 0.02²), hidden states N(0, 1). Logits have a standard deviation of
0.02 √H (0.4 at H = 384), and the loss is a little above ln V.

**trained**, a trained head. Weights are N(0, 0.02²) except for dimension 0, which holds the unigram log-probabilities;
every hidden state activates that dimension. Noise gives each logit a standard deviation of 1. In 80 % of the rows a
multiple of the label's weight vector is added, such that the label's probability has log-odds of about N(2, 2²); the
other 20 % contain no information beyond word frequencies. The loss is near 2 nats, the entropy of the softmax near 3.3,
and the label has the largest logit in 80 % of the rows: the softmax is peaked in most rows and broad in some, as in a
trained masked language model. With "uniform", distillation's teacher is trained all the same.

**Adversary**: documents of 16 to 512 tokens one after the other, languages drawn uniformly, hidden states N(0, 1).
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
"""Mean and standard deviation; the noise of the other logits lowers the mean by about 0.7."""


@dataclass
class MLMInputs:
    """Head over the vocabulary and rows to score; ``leaves`` are the tensors that need gradients."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    bias: Tensor | None = None

    @property
    def leaves(self) -> dict[str, Tensor]:
        named = {"hidden": self.hidden, "weight": self.weight, "bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def first_rows(self, rows: int) -> MLMInputs:
        """The same head with copies of the first ``rows`` rows."""
        return MLMInputs(_leaf(self.hidden[:rows]), self.weight, self.labels[:rows], self.bias)


@dataclass
class DistillationInputs:
    """Heads and hidden states of student and teacher. KL at `TEMPERATURE`, mean over rows, no T², no cross-entropy."""

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

    def first_rows(self, rows: int) -> DistillationInputs:
        """The same heads with copies of the first ``rows`` rows."""
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

    def first_rows(self, rows: int) -> AdversaryInputs:
        """All inputs, for any ``rows``: documents cannot be cut, and the reference is cheap."""
        return self


Inputs = MLMInputs | DistillationInputs | AdversaryInputs


def make_inputs(case: Case, device: torch.device | str) -> Inputs:
    """Draw the tensors of ``case`` and copy them to ``device`` in its dtype."""
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
    """Hidden states (N, H) and weight (V, H), fp32; see the module's docstring."""
    weight = torch.randn(len(log_prior), hidden_size, generator=generator).mul_(INIT_STD)
    return torch.randn(len(labels), hidden_size, generator=generator), weight


def _trained_head(
    labels: Tensor, log_prior: Tensor, hidden_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hidden states (N, H) and weight (V, H), fp32; see the module's docstring."""
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
