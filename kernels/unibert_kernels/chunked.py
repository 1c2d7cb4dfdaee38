"""The losses in plain torch, on any device: chunks of rows, gradients in the forward pass.

**Heads over the vocabulary.** Rows are taken in chunks of R, so that one buffer of R x V logits (two in distillation)
of at most `WORKSPACE` elements serves the whole call, and memory does not grow with N x V. For each chunk:

    1. logits = X Wᵀ                                            one product, 2 R H V flops
    2. by strips of a few rows, in place: logits → row losses and ∂loss/∂logits
    3. dX = dZ W,   dW += dZᵀ X,   db += Σ dZ                   two products, 4 R H V flops

Gradients are computed here, if a backward pass could follow. To recompute the logits in the backward pass would take 8
N H V flops instead of 6, and on a CPU nearly all the time goes into the products (94 % at H = 256, V = 32k). The price
is that dX and dW are kept from the forward pass to the loss's backward pass, which in training follows immediately. A
recomputation by ranges of the vocabulary would keep only dX, but would need a whole dW a moment later.

Rows are chunked, not the vocabulary, because the softmax needs whole rows: with a whole row in the buffer it needs
neither a second pass nor a running rescaling. The cost is that dW (V x H) is read and written once per chunk: 8 V H
bytes against the chunk's 6 R H V flops, which at R = 256 is 192 flops per byte, far above a machine's balance. Smaller
R also makes the products themselves slower. Measured on one core at H = 384, V = 120k: R = 256 takes 5 % longer than
R = 512.

Strips (step 2) exist because elementwise torch goes over its operand once per operation: on the CPU a strip stays in
the second-level cache between operations, which saves up to half of the step's time. Other devices take the whole chunk
at once.

**Precision.** Logits, softmax, sums and accumulated gradients are fp32 (fp64 for fp64 inputs). CPU products are
computed in that dtype too, with an upcast copy of a half-precision W for the duration of the call. On CUDA the
products' operands have the inputs' dtype, or autocast's, and the result is fp32; ∂loss/∂logits is rounded to the
operands' dtype before step 3.

**Adversary.** It needs no workspace: only the samples' gradients grow with T, and hidden's gradient is as large anyway.
Token-level samples go through the discriminator in chunks of `SAMPLES`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from unibert_kernels.arguments import AdversaryInputs, AdversaryOptions, DistillationOptions, MLMHeadOptions
from unibert_kernels.linear_head import Head
from unibert_kernels.products import accumulator_dtype, product

WORKSPACE = 2**26
"""Maximum elements of logits in memory at a time (256 MiB in fp32), unless a single row is longer."""
MAX_CHUNK_ROWS = 512
"""Products gain little from more rows, while a new buffer costs page faults (0.5 ms per MiB measured)."""
ROWS_STEP = 128
"""Buffers have a multiple of so many rows: blocks of a new size in every step would fragment memory, which then grows
for dozens of steps. Coarser than on the fused paths, since rows that are not used take no memory on a CPU."""
STRIP = 2**19
"""Elements of logits that a CPU core works on at a time (2 MiB in fp32, one or two second-level caches)."""
SAMPLES = 4096
"""Samples that go through the discriminator at a time."""
PLAIN_CROSS_ENTROPY = MLMHeadOptions()

Gradients = tuple[Tensor | None, ...]
NeedsGrad = tuple[bool, ...]
"""Whether each tensor needs a gradient."""


def mlm_head(
    head: Head, needs_grad: NeedsGrad, labels: Tensor, counted: Tensor, options: MLMHeadOptions
) -> tuple[Tensor, Tensor, Tensor, Gradients]:
    """Compute `unibert_kernels.mlm_head`; ``labels`` (N,) hold valid ids, even where ``counted`` (N,) is false.

    Returns:
        Row losses (N,), hits (N,) bool, both zero in rows not counted, () a divisor, and the gradients of the sum of
        the row losses, divided by it, with respect to the three tensors of ``head``, contiguous in the losses' dtype,
        None where none is needed.
    """
    linear = _LinearHead(head, needs_grad)
    losses = labels.new_zeros(len(labels), dtype=linear.dtype)
    hits = torch.zeros_like(counted)
    divisor = _early_divisor(counted, linear.dtype)
    weights = counted / divisor
    with torch.autocast(labels.device.type, enabled=False):
        for chunk, (logits,) in _logits_by_chunk(len(labels), linear):
            for strip, rows in _strips(chunk, logits):
                losses[rows], hits[rows] = _cross_entropy_(
                    logits[strip], labels[rows], counted[rows], weights[rows], options
                )
            linear.accumulate_gradients(chunk, logits)
    return losses, hits, divisor, linear.gradients


def distillation(
    student: Head,
    teacher: Head,
    needs_grad: NeedsGrad,
    labels: Tensor | None,
    counted: Tensor,
    options: DistillationOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Gradients]:
    """Compute `unibert_kernels.distillation`; ``labels`` and ``counted`` are as in `mlm_head`.

    Returns:
        Row KL (N,), row cross-entropy (N,), hits (N,) bool, all zero in rows not counted, () a divisor, and the
        gradients of Σ κ KL + α CE, divided by it, with respect to the three tensors of ``student``, None where none is
        needed.
    """
    student_head, teacher_head = _LinearHead(student, needs_grad), _LinearHead(teacher, (False, False, False))
    divergences = counted.new_zeros(len(counted), dtype=student_head.dtype)
    cross_entropies = torch.zeros_like(divergences)
    hits = torch.zeros_like(counted)
    divisor = _early_divisor(counted, student_head.dtype)
    weights = counted / divisor
    with torch.autocast(counted.device.type, enabled=False):
        for chunk, (logits, teacher_logits) in _logits_by_chunk(len(counted), student_head, teacher_head):
            for strip, rows in _strips(chunk, logits):
                if labels is not None:
                    gradient = logits[strip].clone()
                    cross_entropies[rows], hits[rows] = _cross_entropy_(
                        gradient, labels[rows], counted[rows], weights[rows], PLAIN_CROSS_ENTROPY
                    )
                divergences[rows] = _divergence_(
                    logits[strip], teacher_logits[strip], counted[rows], weights[rows], options.temperature
                )
                logits[strip].mul_(options.kl_factor)
                if options.ce_weight:
                    logits[strip].add_(gradient, alpha=options.ce_weight)
            student_head.accumulate_gradients(chunk, logits)
    return divergences, cross_entropies, hits, divisor, student_head.gradients


def adversary(
    inputs: AdversaryInputs, needs_grad: NeedsGrad, options: AdversaryOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor, Gradients]:
    """Compute `unibert_kernels.adversary`.

    Returns:
        () each: the loss, Ω, number of samples, hits; and the gradients with respect to hidden (that of the encoder's
        objective, times λ), w1, b1, w2 and b2, contiguous in the loss's dtype, None where none is needed.
    """
    dtype = accumulator_dtype(*inputs.differentiable)
    hidden_needs_grad, *parameters_need_grad = needs_grad
    hidden, document_ids, languages = inputs.hidden.detach(), inputs.document_ids, inputs.languages
    level, class_weights, num_documents = options.level, inputs.class_weights, len(languages)
    # Padding counts as one more document, the last, so that no step depends on how many tokens are real.
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
        parameters = [parameter.detach().to(dtype) for parameter in inputs.discriminator]
        loss_sum, hits, gradients, adverse_gradient = _discriminate(
            samples, labels, weights, parameters, options.objective
        )

        weight_sum = weights.sum()
        divisor = weight_sum.where(weight_sum > 0, 1)
        hidden_gradient = None
        if hidden_needs_grad:
            hidden_gradient = adverse_gradient.mul_(inputs.reversal / divisor)
            if level != "token":
                by_document = torch.cat([hidden_gradient, hidden_gradient.new_zeros(1, hidden.shape[1])])
                hidden_gradient = by_document[documents].mul_(shares[:, None])
    parameter_gradients = (
        gradient.div_(divisor) if needed else None
        for gradient, needed in zip(gradients, parameters_need_grad, strict=True)
    )
    return loss_sum / divisor, weight_sum, exists.sum(), (exists & hits).sum(), (hidden_gradient, *parameter_gradients)


def _discriminate(
    samples: Tensor, labels: Tensor, weights: Tensor, parameters: list[Tensor], objective: str
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Send ``samples`` (number, H) through the discriminator and back.

    Returns:
        () weighted sum of the cross-entropies, hits (number,) bool, gradients of the sum with respect to the four
        ``parameters``, and the gradient (number, H) of the encoder's objective at λ = 1.
    """
    w1, b1, w2, b2 = parameters
    loss_sum = weights.new_zeros(())
    hits = torch.zeros_like(labels, dtype=torch.bool)
    gradients = [parameter.new_zeros(parameter.shape) for parameter in parameters]
    adverse_gradient = samples.new_empty(samples.shape, dtype=w1.dtype)
    for chunk in _slices(len(labels), SAMPLES):
        x, y, weight = samples[chunk].to(w1.dtype), labels[chunk, None], weights[chunk, None]
        a = torch.addmm(b1, x, w1.t())
        activation = F.gelu(a)
        log_p = torch.addmm(b2, activation, w2.t()).log_softmax(1)
        label_log_p = log_p.gather(1, y)
        loss_sum -= (label_log_p * weight).sum()
        hits[chunk] = label_log_p[:, 0] >= log_p.amax(1)

        p = log_p.exp_()
        dz = p.scatter_add(1, y, -torch.ones_like(weight)) * weight
        da = torch.ops.aten.gelu_backward(dz @ w2, a)
        increments = da.t() @ x, da.sum(0), dz.t() @ activation, dz.sum(0)
        for gradient, increment in zip(gradients, increments, strict=True):
            gradient += increment
        adverse_dz = -dz if objective == "reversal" else (p - 1 / len(w2)) * weight
        adverse_gradient[chunk] = torch.ops.aten.gelu_backward(adverse_dz @ w2, a) @ w1
    return loss_sum, hits, gradients, adverse_gradient


class _LinearHead:
    """z = X Wᵀ + b: computes the logits of a chunk of rows, and accumulates gradients from the gradient of those
    logits."""

    def __init__(self, head: Head, needs_grad: NeedsGrad) -> None:
        hidden, weight, bias = head.tensors
        self.dtype = accumulator_dtype(hidden, weight)
        # Only CUDA multiplies half-precision operands into fp32.
        self.operand_dtype = head.dtype if hidden.is_cuda else self.dtype
        self.hidden = hidden.detach()
        self.weight = weight.detach().to(self.operand_dtype)
        self.bias = None if bias is None else bias.detach()
        # The first chunk is written, not added: zeros over the vocabulary would be two passes more.
        start = torch.Tensor.new_empty if len(hidden) else torch.Tensor.new_zeros
        self.gradients: Gradients = tuple(
            start(tensor, tensor.shape, dtype=self.dtype) if needed and tensor is not None else None
            for tensor, needed in zip(head.tensors, needs_grad, strict=True)
        )

    def hidden_states(self, chunk: slice) -> Tensor:
        return self.hidden[chunk].to(self.operand_dtype)

    def project(self, chunk: slice, out: Tensor) -> None:
        product(self.hidden_states(chunk), self.weight.t(), out)
        if self.bias is not None:
            for strip, _ in _strips(chunk, out):
                out[strip].add_(self.bias)

    def accumulate_gradients(self, chunk: slice, logits_gradient: Tensor) -> None:
        """Add the contribution of the rows of ``chunk``, given the gradient of their logits (len(chunk), V)."""
        hidden_gradient, weight_gradient, bias_gradient = self.gradients
        is_first = chunk.start == 0
        if bias_gradient is not None:
            if is_first:
                bias_gradient.zero_()
            bias_gradient += logits_gradient.sum(0)
        operand = logits_gradient.to(self.operand_dtype)
        if hidden_gradient is not None:
            product(operand, self.weight, hidden_gradient[chunk])
        if weight_gradient is not None:
            product(operand.t(), self.hidden_states(chunk), weight_gradient, accumulate=not is_first)


def _early_divisor(counted: Tensor, dtype: torch.dtype) -> Tensor:
    """() the number of counted rows on a CPU, at least 1, and 1 elsewhere; see `unibert_kernels.mlm_head`."""
    return counted.sum().clamp(min=1).to(dtype) if counted.device.type == "cpu" else counted.new_ones((), dtype=dtype)


def _slices(length: int, max_length: int) -> list[slice]:
    """Cut 0 … length into as few slices of at most ``max_length`` as possible, as equal as possible."""
    number = math.ceil(length / max_length)
    return [slice(length * i // number, length * (i + 1) // number) for i in range(number)]


def _logits_by_chunk(num_rows: int, *heads: _LinearHead) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield slices of rows and every head's logits (rows, V), in buffers that the next chunk overwrites."""
    vocab_size = len(heads[0].weight)
    max_rows = max(1, min(MAX_CHUNK_ROWS, WORKSPACE // max(1, vocab_size * len(heads))))
    chunks = _slices(num_rows, max_rows)
    longest = max((chunk.stop - chunk.start for chunk in chunks), default=0)
    rows = min(max_rows, math.ceil(longest / ROWS_STEP) * ROWS_STEP)
    buffers = [head.weight.new_empty((rows, vocab_size), dtype=head.dtype) for head in heads]
    for chunk in chunks:
        logits = [buffer[: chunk.stop - chunk.start] for buffer in buffers]
        for head, out in zip(heads, logits, strict=True):
            head.project(chunk, out)
        yield chunk, logits


def _strips(chunk: slice, logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield each strip of a chunk, as a slice of ``logits`` and as a slice of all rows."""
    max_rows = max(1, STRIP // max(1, logits.shape[1])) if logits.device.type == "cpu" else len(logits)
    for strip in _slices(len(logits), max_rows):
        yield strip, slice(chunk.start + strip.start, chunk.start + strip.stop)


def _cross_entropy_(
    logits: Tensor, labels: Tensor, counted: Tensor, weights: Tensor, options: MLMHeadOptions
) -> tuple[Tensor, Tensor]:
    """Row losses and hits of ``logits`` (rows, V), which are overwritten by ∂(Σ weight · row loss)/∂logits."""
    label_smoothing, z_loss, vocab_size = options.label_smoothing, options.z_loss, logits.shape[1]
    maximum = logits.amax(1)
    label_logit = logits.gather(1, labels[:, None])[:, 0]
    mean_logit = logits.mean(1) if label_smoothing else 0.0
    total = logits.sub_(maximum[:, None]).exp_().sum(1)
    log_sum = maximum + total.log()
    losses = log_sum - (1 - label_smoothing) * label_logit - label_smoothing * mean_logit + z_loss * log_sum**2

    logits.mul_((weights * (1 + 2 * z_loss * log_sum) / total)[:, None])
    if label_smoothing:
        logits.sub_((weights * (label_smoothing / vocab_size))[:, None])
    logits.scatter_add_(1, labels[:, None], (weights * (label_smoothing - 1.0))[:, None])
    return losses.where(counted, 0), counted & (label_logit >= maximum)


def _divergence_(student: Tensor, teacher: Tensor, counted: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Row KL of two sets of logits (rows, V); ``student`` is overwritten by ∂(Σ weight · row KL)/∂(student logits)."""
    log_student = (student / temperature).log_softmax(1)
    log_teacher = (teacher / temperature).log_softmax(1)
    p_teacher = log_teacher.exp()
    divergences = (p_teacher * log_teacher.sub_(log_student)).sum(1)
    torch.sub(log_student.exp_(), p_teacher, out=student)
    student.mul_((weights / temperature)[:, None])
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
        # index_add_ adds in the order in which threads arrive; this sorts first.
        sums.index_put_((documents,), values, accumulate=True)
    else:
        sums.index_add_(0, documents, values)
    return sums[:num_documents]
