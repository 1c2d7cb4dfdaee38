"""The losses in plain torch, on any device: chunks of rows, gradients in the forward pass.

**Heads over the vocabulary.** Rows are taken in chunks of R, so that one buffer of R x V logits (two in distillation)
of at most `WORKSPACE` elements serves the whole call, and memory does not grow with N x V. Per chunk:

    1. logits = X Wᵀ                                            one product, 2 R H V flops
    2. by strips of a few rows, in place: logits → row losses and ∂loss/∂logits
    3. dX = dZ W,   dW += dZᵀ X,   db += Σ dZ                   two products, 4 R H V flops

Gradients are computed here, when a backward pass could follow, and not by recomputing logits in the backward pass:
6 N H V flops instead of 8, and on a CPU nearly all the time goes into the products (94 % at H = 256, V = 32k). The
price is that dX and dW live from the forward pass to the backward pass of the loss, which for a training loss is
the next thing that happens; a vocabulary-chunked recomputation would need only dX, but a whole dW a moment later.

Why rows and not vocabulary are chunked: the softmax needs whole rows, and a whole row in the buffer needs neither a
second pass nor a running rescaling. The cost is that dW (V x H) is read and written once per chunk: 8 V H bytes
against the chunk's 6 R H V flops, which at R = 256 is 192 flops per byte, far above a machine's balance. Smaller R
also makes the products themselves slower. Measured, one core, H = 384, V = 120k: R = 256 costs 5 % more than R = 512.

Strips (step 2) exist because elementwise torch goes over its operand once per operation: on the CPU a strip stays in
the second-level cache between operations, which takes up to half off the step. Other devices take the chunk whole.

**Precision.** Logits, softmax, sums and collected gradients are fp32 (fp64 for fp64 inputs). CPU products are done in
that dtype too, with an upcast copy of a half-precision W for the length of the call. On CUDA the products' operands
have the inputs' dtype, or autocast's, and an fp32 result; ∂loss/∂logits is rounded to the operands' dtype before
step 3.

**Adversary.** Small enough for no workspace: the samples' gradients are the only thing that grows with T, and hidden's
gradient is as large anyway. Token-level samples go through the discriminator in chunks of `SAMPLES`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from unibert_kernels.linear_head import Head
from unibert_kernels.products import accumulator_dtype, product

WORKSPACE = 2**26
"""Most elements of logits in memory at a time (256 MiB in fp32), unless a single row is longer."""
MAX_CHUNK_ROWS = 512
"""Products gain little from more rows, while a fresh buffer costs page faults (0.5 ms per MiB measured)."""
STRIP = 2**19
"""Elements of logits that a CPU core works on at a time (2 MiB in fp32, a second-level cache or two)."""
SAMPLES = 4096
"""Samples that go through the discriminator at a time."""

Gradients = tuple[Tensor | None, ...]
Wants = tuple[bool, ...]
"""Of which tensors a gradient is wanted."""


def mlm_head(
    head: Head,
    wants: Wants,
    rows: Tensor | None,
    labels: Tensor,
    counted: Tensor,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Tensor, Gradients]:
    """The mathematics of `unibert_kernels.mlm_head`; ``labels`` (N,) hold an id also where ``counted`` (N,) is false.

    Returns:
        Row losses (N,), hits (N,) bool, both zero in rows not counted, and the gradients of the sum of the row losses
        with respect to the three tensors of ``head``, contiguous in the losses' dtype, None where none is wanted.
    """
    linear = _LinearHead(head, wants, rows)
    losses = labels.new_zeros(len(labels), dtype=linear.dtype)
    hits = torch.zeros_like(counted)
    with torch.autocast(labels.device.type, enabled=False):
        for chunk, (logits,) in _logits_by_chunk(len(labels), linear):
            for strip, part in _strips(chunk, logits):
                losses[part], hits[part] = _cross_entropy_(
                    logits[strip], labels[part], counted[part], label_smoothing, z_loss
                )
            linear.collect_gradients(chunk, logits)
    return losses, hits, linear.gradients


def distillation(
    student: Head,
    teacher: Head,
    wants: Wants,
    labels: Tensor | None,
    counted: Tensor,
    temperature: float,
    kl_factor: float,
    ce_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Gradients]:
    """The mathematics of `unibert_kernels.distillation`; ``kl_factor`` is κ, ``labels`` and ``counted`` as above.

    Returns:
        Row KL (N,), row cross-entropy (N,), hits (N,) bool, all zero in rows not counted, and the gradients of
        Σ κ KL + ``ce_weight`` CE with respect to the three tensors of ``student``, None where none is wanted.
    """
    student_linear, teacher_linear = _LinearHead(student, wants), _LinearHead(teacher, (False, False, False))
    divergences = counted.new_zeros(len(counted), dtype=student_linear.dtype)
    cross_entropies = torch.zeros_like(divergences)
    hits = torch.zeros_like(counted)
    with torch.autocast(counted.device.type, enabled=False):
        for chunk, (logits, teacher_logits) in _logits_by_chunk(len(counted), student_linear, teacher_linear):
            for strip, part in _strips(chunk, logits):
                if labels is not None:
                    gradient = logits[strip].clone()
                    cross_entropies[part], hits[part] = _cross_entropy_(gradient, labels[part], counted[part])
                divergences[part] = _divergence_(logits[strip], teacher_logits[strip], counted[part], temperature)
                logits[strip].mul_(kl_factor)
                if ce_weight:
                    logits[strip].add_(gradient, alpha=ce_weight)
            student_linear.collect_gradients(chunk, logits)
    return divergences, cross_entropies, hits, student_linear.gradients


def adversary(
    hidden: Tensor,
    document_ids: Tensor,
    languages: Tensor,
    discriminator: tuple[Tensor, Tensor, Tensor, Tensor],
    wants: Wants,
    reversal: Tensor,
    level: str,
    objective: str,
    class_weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Gradients]:
    """The mathematics of `unibert_kernels.adversary`; ``discriminator`` is (w1, b1, w2, b2).

    Returns:
        () each: the loss, Ω, number of samples, hits; and the gradients of the loss with respect to hidden (λ and the
        encoder's objective in it), w1, b1, w2 and b2, contiguous in the loss's dtype, None where none is wanted.
    """
    dtype = accumulator_dtype(hidden, *discriminator)
    wants_hidden, *wants_parameters = wants
    hidden, num_documents = hidden.detach(), len(languages)
    # Padding is one more document, the last, so that no step needs to know how many tokens are real.
    documents = document_ids.where(document_ids >= 0, num_documents)
    with torch.autocast(hidden.device.type, enabled=False):
        if level == "token":
            samples, exists = hidden, document_ids >= 0
            labels = torch.cat([languages, languages.new_zeros(1)])[documents]
        else:
            shares, exists = _shares_of_tokens(documents, num_documents, level, dtype)
            samples = _sum_by_document(hidden.to(dtype) * shares[:, None], documents, num_documents)
            labels = languages
        weights = exists.to(dtype) if class_weights is None else exists * class_weights.to(dtype)[labels]
        parameters = [parameter.detach().to(dtype) for parameter in discriminator]
        total, hits, gradients, adverse_gradient = _discriminate(samples, labels, weights, parameters, objective)

        weight_sum = weights.sum()
        divisor = weight_sum.where(weight_sum > 0, 1)
        hidden_gradient = None
        if wants_hidden:
            hidden_gradient = adverse_gradient.mul_(reversal / divisor)
            if level != "token":
                of_documents = torch.cat([hidden_gradient, hidden_gradient.new_zeros(1, hidden.shape[1])])
                hidden_gradient = of_documents[documents].mul_(shares[:, None])
    wanted = (
        gradient.div_(divisor) if wanted else None for gradient, wanted in zip(gradients, wants_parameters, strict=True)
    )
    return total / divisor, weight_sum, exists.sum(), (exists & hits).sum(), (hidden_gradient, *wanted)


def _discriminate(
    samples: Tensor, labels: Tensor, weights: Tensor, parameters: list[Tensor], objective: str
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Send ``samples`` (number, H) through the discriminator and back.

    Returns:
        () weighted sum of the cross-entropies, hits (number,) bool, gradients of the sum with respect to the four
        ``parameters``, and the gradient (number, H) that the encoder is to descend at λ = 1.
    """
    w1, b1, w2, b2 = parameters
    total = weights.new_zeros(())
    hits = torch.zeros_like(labels, dtype=torch.bool)
    gradients = [parameter.new_zeros(parameter.shape) for parameter in parameters]
    adverse_gradient = samples.new_empty(samples.shape, dtype=w1.dtype)
    for part in _slices(len(labels), SAMPLES):
        x, y, weight = samples[part].to(w1.dtype), labels[part, None], weights[part, None]
        a = torch.addmm(b1, x, w1.t())
        activation = F.gelu(a)
        log_p = torch.addmm(b2, activation, w2.t()).log_softmax(1)
        label_log_p = log_p.gather(1, y)
        total -= (label_log_p * weight).sum()
        hits[part] = label_log_p[:, 0] >= log_p.amax(1)

        p = log_p.exp_()
        dz = p.scatter_add(1, y, -torch.ones_like(weight)) * weight
        da = torch.ops.aten.gelu_backward(dz @ w2, a)
        increments = da.t() @ x, da.sum(0), dz.t() @ activation, dz.sum(0)
        for gradient, increment in zip(gradients, increments, strict=True):
            gradient += increment
        adverse_dz = -dz if objective == "reversal" else (p - 1 / len(w2)) * weight
        adverse_gradient[part] = torch.ops.aten.gelu_backward(adverse_dz @ w2, a) @ w1
    return total, hits, gradients, adverse_gradient


class _LinearHead:
    """z = X Wᵀ + b: gives the logits of a chunk of rows, and collects gradients from the gradient of those logits."""

    def __init__(self, head: Head, wants: Wants, rows: Tensor | None = None) -> None:
        hidden, weight, bias = head.tensors
        self.dtype = accumulator_dtype(hidden, weight)
        # Only CUDA multiplies halves into fp32.
        self.operand_dtype = head.dtype if hidden.is_cuda else self.dtype
        self.hidden, self.rows = hidden.detach(), rows
        self.weight = weight.detach().to(self.operand_dtype)
        self.bias = None if bias is None else bias.detach()
        self.gradients: Gradients = tuple(
            tensor.new_zeros(tensor.shape, dtype=self.dtype) if wanted and tensor is not None else None
            for tensor, wanted in zip(head.tensors, wants, strict=True)
        )

    def hidden_states(self, chunk: slice) -> Tensor:
        states = self.hidden[chunk] if self.rows is None else self.hidden.index_select(0, self.rows[chunk])
        return states.to(self.operand_dtype)

    def project(self, chunk: slice, out: Tensor) -> None:
        product(self.hidden_states(chunk), self.weight.t(), out)
        if self.bias is not None:
            for strip, _ in _strips(chunk, out):
                out[strip].add_(self.bias)

    def collect_gradients(self, chunk: slice, logits_gradient: Tensor) -> None:
        """Add what the rows of ``chunk`` contribute, given the gradient of their logits (len(chunk), V)."""
        hidden_gradient, weight_gradient, bias_gradient = self.gradients
        if bias_gradient is not None:
            bias_gradient += logits_gradient.sum(0)
        operand = logits_gradient.to(self.operand_dtype)
        if hidden_gradient is not None:
            if self.rows is None:
                product(operand, self.weight, hidden_gradient[chunk])
            else:
                states_gradient = operand.new_empty((len(operand), self.weight.shape[1]), dtype=self.dtype)
                product(operand, self.weight, states_gradient)
                hidden_gradient.index_add_(0, self.rows[chunk], states_gradient)
        if weight_gradient is not None:
            product(operand.t(), self.hidden_states(chunk), weight_gradient, accumulate=True)


def _slices(length: int, most: int) -> list[slice]:
    """Cut 0 … length into the fewest slices of at most ``most``, as equal as can be."""
    number = math.ceil(length / most)
    return [slice(length * i // number, length * (i + 1) // number) for i in range(number)]


def _logits_by_chunk(num_rows: int, *heads: _LinearHead) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield slices of rows with every head's logits (rows, V), in buffers that the next chunk overwrites."""
    vocab_size = len(heads[0].weight)
    chunks = _slices(num_rows, max(1, min(MAX_CHUNK_ROWS, WORKSPACE // max(1, vocab_size * len(heads)))))
    most = max((chunk.stop - chunk.start for chunk in chunks), default=0)
    buffers = [head.weight.new_empty((most, vocab_size), dtype=head.dtype) for head in heads]
    for chunk in chunks:
        logits = [buffer[: chunk.stop - chunk.start] for buffer in buffers]
        for head, out in zip(heads, logits, strict=True):
            head.project(chunk, out)
        yield chunk, logits


def _strips(chunk: slice, logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the strips of a chunk, as rows of ``logits`` and as rows of the whole call."""
    most = max(1, STRIP // max(1, logits.shape[1])) if logits.device.type == "cpu" else len(logits)
    for strip in _slices(len(logits), most):
        yield strip, slice(chunk.start + strip.start, chunk.start + strip.stop)


def _cross_entropy_(
    logits: Tensor, labels: Tensor, counted: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Row losses and hits of ``logits`` (rows, V), which become ∂(sum of the row losses)/∂logits."""
    vocab_size = logits.shape[1]
    peak = logits.amax(1)
    label_logit = logits.gather(1, labels[:, None])[:, 0]
    mean_logit = logits.mean(1) if label_smoothing else 0.0
    total = logits.sub_(peak[:, None]).exp_().sum(1)
    log_sum = peak + total.log()
    losses = log_sum - (1 - label_smoothing) * label_logit - label_smoothing * mean_logit + z_loss * log_sum**2

    logits.mul_((counted * (1 + 2 * z_loss * log_sum) / total)[:, None])
    if label_smoothing:
        logits.sub_((counted * (label_smoothing / vocab_size))[:, None])
    logits.scatter_add_(1, labels[:, None], (counted * (label_smoothing - 1.0)).to(logits.dtype)[:, None])
    return losses.where(counted, 0), counted & (label_logit >= peak)


def _divergence_(student: Tensor, teacher: Tensor, counted: Tensor, temperature: float) -> Tensor:
    """Row KL of two sets of logits (rows, V); ``student`` becomes ∂(sum of the row KL)/∂(student logits)."""
    log_student = (student / temperature).log_softmax(1)
    log_teacher = (teacher / temperature).log_softmax(1)
    p_teacher = log_teacher.exp()
    divergences = (p_teacher * log_teacher.sub_(log_student)).sum(1)
    torch.sub(log_student.exp_(), p_teacher, out=student)
    student.mul_((counted / temperature)[:, None])
    return divergences.where(counted, 0)


def _shares_of_tokens(documents: Tensor, num_documents: int, level: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight (T,) of each token in its document's sample, and whether each document (D,) has a token."""
    lengths = documents.new_zeros(num_documents + 1).index_add_(0, documents, torch.ones_like(documents))
    if level == "mean":
        share = 1 / lengths.to(dtype)[documents]
    else:
        positions = torch.arange(len(documents), device=documents.device)
        firsts = torch.full_like(lengths, len(documents)).scatter_reduce_(0, documents, positions, "amin")
        share = (firsts[documents] == positions).to(dtype)
    return share, lengths[:num_documents] > 0


def _sum_by_document(values: Tensor, documents: Tensor, num_documents: int) -> Tensor:
    """Sum ``values`` (T, H) over the tokens of each document, (D, H), in a fixed order."""
    sums = values.new_zeros((num_documents + 1, values.shape[1]))
    if values.is_cuda:
        # index_add_ adds in whatever order the threads arrive; this sorts first.
        sums.index_put_((documents,), values, accumulate=True)
    else:
        sums.index_add_(0, documents, values)
    return sums[:num_documents]
