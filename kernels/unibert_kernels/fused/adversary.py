"""The adversary in Triton: one kernel pools the documents, classifies them and computes dx.

The work is small (0.14 GFLOP for 128 documents at H = F = 384 and 107 languages). Time goes into launches, into reading
hidden and into writing its gradient, and more into the host's part than into the device's: hence the few tensors. The
launches, with the kernels of `adversary_kernels`:

    1. forward     clear, find_documents
    2.             discriminate, dW1, dW2, once per `SAMPLES` samples
    3.             finish
    4. backward    upstream · (1 / Ω, λ / Ω), all parameters' gradients at once, hidden_gradient

**Pooling.** At level mean each program of discriminate averages one block of columns of one document. The last program
of a tile of documents to finish then takes the tile through the discriminator. Which one that is varies from run to
run; what it computes does not. At levels cls and token a program copies the samples of its tile instead.

**Discriminator.** Four products per tile. The left operand always comes from scratch memory, which the program itself
wrote (or, for pooled documents, the tile's other programs), so that registers hold one accumulator at a time:

    a = x W1ᵀ + b1 → gelu(a), gelu'(a)      z = gelu(a) W2ᵀ + b2 → dz      da = gelu'(a) (dz W2)      dx = ± da W1

Products are fp32, made of three tf32 products each (tf32x3); sums are fp32. The operands of the discriminator's own
gradients (x, gelu(a), da, dz) stay in scratch, one row per sample, for two plain products. Sums over samples for the
biases are taken per tile, and finish adds the tiles in their order.

**Languages** that do not exist are treated as language 0, and finish makes the loss and both factors NaN, and with them
all gradients. A check outside the kernels would double the number of launches.

**Between the passes** the parameters' gradients and dx are kept, one row per sample: (D, H) at levels mean and cls. The
backward pass writes hidden's gradient in hidden's dtype; there upstream (a loss scale), λ / Ω and the token's share
multiply dx before it is rounded. Under torch.compile the forward pass writes it in fp32, so that one operator serves
this path and chunked: 4 T H bytes are kept, and read once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unibert_kernels.arguments import AdversaryInputs, AdversaryOptions
from unibert_kernels.fused import adversary_kernels as kernels
from unibert_kernels.fused.launch import launch

SAMPLES = 16384
"""Samples that share the scratch memory of one launch: (H + 2F + L) x 64 KiB, about 80 MB at H = F = 384. A multiple of
a tile's rows."""
BLOCK = 64
"""Hidden or intermediate columns of a tile. All languages fit in one tile."""
DEPTH = 32
"""Terms of a product that are added at a time."""

Results = tuple[Tensor, Tensor, Tensor, Tensor]


def adversary(inputs: AdversaryInputs, needs_grad: tuple[bool, ...], options: AdversaryOptions) -> Results:
    """`unibert_kernels.adversary_loss` on one CUDA device, in fp32.

    Returns:
        () each: loss, differentiable with respect to the tensors that ``needs_grad`` names, and Ω in fp32; number of
        samples and hits in int64.
    """
    result: Results = _Adversary.apply(inputs, needs_grad, options, *inputs.differentiable)
    return result


def adversary_with_gradients(
    inputs: AdversaryInputs, needs_grad: tuple[bool, ...], options: AdversaryOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
    """As `chunked.adversary`: results and gradients in one pass; hidden's gradient is fp32."""
    results, saved = _forward(inputs, needs_grad, options)
    hidden_needs_grad, *parameters_need_grad = needs_grad
    hidden_gradient = None
    if hidden_needs_grad:
        shape, num_documents = inputs.hidden.shape, len(inputs.languages)
        hidden_gradient = _hidden_gradient(saved.factors, saved, options.level, num_documents, shape, torch.float32)
    parameter_gradients: list[Tensor | None] = [None] * len(parameters_need_grad)
    if saved.gradients is not None:
        views = _split_gradients(saved.gradients, [parameter.shape for parameter in inputs.discriminator])
        for index, needed in enumerate(parameters_need_grad):
            if needed:
                parameter_gradients[index] = views[index] * saved.factors[0]
    return *results, (hidden_gradient, *parameter_gradients)


class _Saved(NamedTuple):
    """Tensors that the backward pass needs; never a parameter, see `attach_gradients`."""

    document_ids: Tensor
    ranges: Tensor | None
    factors: Tensor
    """(2,): 1 / Ω for the parameters' gradients, λ / Ω for hidden's."""
    dx: Tensor | None
    gradients: Tensor | None
    """Flat gradients of Ω times the loss with respect to w1, w2, b1 and b2."""


def _forward(
    inputs: AdversaryInputs, needs_grad: tuple[bool, ...], options: AdversaryOptions
) -> tuple[Results, _Saved]:
    w1, b1, w2, b2 = (parameter.contiguous() for parameter in inputs.discriminator)
    hidden, document_ids = inputs.hidden.contiguous(), inputs.document_ids.contiguous()
    languages = inputs.languages.contiguous()
    class_weights = None if inputs.class_weights is None else inputs.class_weights.contiguous()
    level, objective = options.level, options.objective
    num_tokens, hidden_size = hidden.shape
    num_languages, intermediate_size = w2.shape
    num_documents, num_biases = len(languages), intermediate_size + num_languages
    padded_languages = max(DEPTH, 1 << (num_languages - 1).bit_length())
    num_samples = num_tokens if level == "token" else num_documents
    tile_rows, num_warps = _tile_rows_and_warps(level, padded_languages)
    num_tiles = _ceil_div(num_samples, tile_rows)
    backward = any(needs_grad)
    fp32: dict[str, Any] = {"dtype": torch.float32, "device": hidden.device}

    ranges = None
    if level != "token":
        # Behind the documents' ranges, discriminate counts each tile's programs that have pooled.
        ranges = torch.zeros(3 * num_documents + num_tiles, dtype=torch.int32, device=hidden.device)
        launch(
            kernels.find_documents_kernel,
            (_ceil_div(num_tokens, 1024),),
            document_ids_ptr=document_ids,
            ranges_ptr=ranges,
            num_tokens=num_tokens,
            num_documents=num_documents,
            BLOCK=1024,
        )

    scratch_columns = [hidden_size, intermediate_size]
    dx = gradients = dw1 = dw2 = bias_gradients = None
    if backward:
        scratch_columns += [intermediate_size, padded_languages]
        if objective == "uniform":
            scratch_columns += [padded_languages, intermediate_size]
        dx = torch.empty((num_samples, hidden_size), **fp32)
        gradients = torch.empty(w1.numel() + w2.numel() + num_biases, **fp32)
        dw1, dw2, bias_gradients = gradients.split([w1.numel(), w2.numel(), num_biases])
    scratch = torch.empty((min(SAMPLES, num_tiles * tile_rows), sum(scratch_columns)), **fp32)
    tile_sums = torch.empty((num_tiles, kernels.NUM_TOTALS.value + num_biases), **fp32)

    for start in range(0, max(1, num_samples), SAMPLES):
        number = min(SAMPLES, num_samples - start)
        grid: tuple[int, ...] = (_ceil_div(number, tile_rows),)
        if level == "mean":
            grid = number, _ceil_div(hidden_size, BLOCK)
        launch(
            kernels.discriminate_kernel,
            grid,
            hidden_ptr=hidden,
            document_ids_ptr=document_ids,
            languages_ptr=languages,
            class_weights_ptr=class_weights,
            ranges_ptr=ranges,
            w1_ptr=w1,
            b1_ptr=b1,
            w2_ptr=w2,
            b2_ptr=b2,
            scratch_ptr=scratch,
            dx_ptr=dx,
            tile_sums_ptr=tile_sums,
            start=start,
            num_samples=number,
            num_tokens=num_tokens,
            num_documents=num_documents,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_languages=num_languages,
            scratch_stride=scratch.stride(0),
            LEVEL=level,
            OBJECTIVE=objective,
            BACKWARD=backward,
            ROWS=tile_rows,
            LANGUAGES=padded_languages,
            BLOCK=BLOCK,
            DEPTH=DEPTH,
            num_warps=num_warps,
            maxnreg=255,  # without it ptxas may spill to fit a third program onto a multiprocessor
        )
        if dw1 is not None and dw2 is not None:
            x, activation, da, dz, *_ = scratch[:number].split(scratch_columns, dim=1)
            if needs_grad[1]:
                _add_product(dw1.view_as(w1), da, x, start > 0)
            if needs_grad[3]:
                _add_product(dw2.view_as(w2), dz[:, :num_languages], activation, start > 0)

    # Separate tensors, since a registered operator may not return views of one.
    loss, weight_sum = torch.empty((), **fp32), torch.empty((), **fp32)
    count, correct = (torch.empty((), dtype=torch.int64, device=hidden.device) for _ in range(2))
    factors = torch.empty(2, **fp32)
    launch(
        kernels.finish_kernel,
        (_ceil_div(num_biases, BLOCK),),
        tile_sums_ptr=tile_sums,
        languages_ptr=languages,
        reversal_ptr=inputs.reversal,
        loss_ptr=loss,
        weight_sum_ptr=weight_sum,
        count_ptr=count,
        correct_ptr=correct,
        factors_ptr=factors,
        bias_gradients_ptr=bias_gradients,
        num_tiles=num_tiles,
        num_documents=num_documents,
        num_languages=num_languages,
        num_biases=num_biases,
        TILES=16,
        BLOCK=BLOCK,
    )
    return (loss, weight_sum, count, correct), _Saved(document_ids, ranges, factors, dx, gradients)


def _add_product(total: Tensor, left: Tensor, right: Tensor, accumulate: bool) -> None:
    """Write leftᵀ right into ``total``, or add it to ``total``. Autocast does not touch products with an ``out``."""
    torch.addmm(total, left.t(), right, beta=1 if accumulate else 0, out=total)


def _hidden_gradient(
    factors: Tensor, saved: _Saved, level: str, num_documents: int, shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """Hidden's gradient (T, H), of ``shape`` and ``dtype``; ``factors`` are upstream times `_Saved.factors`."""
    assert saved.dx is not None
    num_tokens, hidden_size = shape
    hidden_gradient = saved.dx.new_empty(shape, dtype=dtype)
    launch(
        kernels.hidden_gradient_kernel,
        (_ceil_div(num_tokens, 32), _ceil_div(hidden_size, 128)),
        factors_ptr=factors,
        document_ids_ptr=saved.document_ids,
        ranges_ptr=saved.ranges,
        dx_ptr=saved.dx,
        hidden_gradient_ptr=hidden_gradient,
        num_tokens=num_tokens,
        num_documents=num_documents,
        hidden_size=hidden_size,
        LEVEL=level,
        TOKENS=32,
        BLOCK=128,
    )
    return hidden_gradient


def _split_gradients(flat: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of `_Saved.gradients` as the gradients of w1, b1, w2 and b2, which have these ``shapes``."""
    w1, b1, w2, b2 = shapes
    dw1, dw2, db1, db2 = flat.split([w1.numel(), w2.numel(), b1.numel(), b2.numel()])
    return dw1.view(w1), db1, dw2.view(w2), db2


def _ceil_div(size: int, block: int) -> int:
    """As `triton.cdiv`, which takes microseconds on the host."""
    return -(-size // block)


class _Adversary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: AdversaryInputs,
        needs_grad: tuple[bool, ...],
        options: AdversaryOptions,
        *differentiable: Tensor,
    ) -> tuple[Tensor, ...]:
        # ``differentiable`` shows autograd those tensors of ``inputs``: it does not look into tuples.
        results, saved = _forward(inputs, needs_grad, options)
        ctx.save_for_backward(*saved)
        ctx.level, ctx.num_documents, ctx.needs_grad = options.level, len(inputs.languages), needs_grad
        ctx.hidden_shape, ctx.hidden_dtype = inputs.hidden.shape, inputs.hidden.dtype
        ctx.parameters = [(parameter.shape, parameter.dtype) for parameter in inputs.discriminator]
        _, *metrics = results
        ctx.mark_non_differentiable(*metrics)
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        saved = _Saved(*ctx.saved_tensors)
        assert saved.gradients is not None
        hidden_needs_grad, *parameters_need_grad = ctx.needs_grad
        hidden_gradient = None
        factors = upstream * saved.factors
        if hidden_needs_grad:
            hidden_gradient = _hidden_gradient(
                factors, saved, ctx.level, ctx.num_documents, ctx.hidden_shape, ctx.hidden_dtype
            )
        # One multiplication for all parameters of a dtype, since a launch costs more; in practice they have one dtype.
        parameter_gradients: list[Tensor | None] = [None] * len(parameters_need_grad)
        shapes, dtypes = zip(*ctx.parameters, strict=True)
        for dtype in {dtype for needed, dtype in zip(parameters_need_grad, dtypes, strict=True) if needed}:
            out = torch.empty_like(saved.gradients, dtype=dtype)
            views = _split_gradients(torch.mul(saved.gradients, factors[0], out=out), shapes)
            for index, needed in enumerate(parameters_need_grad):
                if needed and dtypes[index] == dtype:
                    parameter_gradients[index] = views[index]
        return *(None,) * 3, hidden_gradient, *parameter_gradients


def _tile_rows_and_warps(level: str, padded_languages: int) -> tuple[int, int]:
    """Rows of a tile and warps of a program.

    Documents: 16 rows, the minimum for tensor cores, since there are few documents and many multiprocessors. Tokens:
    twice as many for each read of the weights. With more rows or fewer warps sm_80 spills registers.
    """
    if level == "token":
        return 32, 8
    return 16, 4 if padded_languages <= 128 else 8
