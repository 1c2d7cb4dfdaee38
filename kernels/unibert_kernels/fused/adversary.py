"""The adversary in Triton: one launch pools the documents, classifies them and sends the gradient back to them.

The work is small (0.14 GFLOP for 128 documents at H = F = 384 and 107 languages), so time goes into launches and into
reading hidden and writing its gradient; and more into the host's part than into all of the device's, which is why
tensors are few here. The launches are

    forward     clear, find_documents, discriminate, dW1, dW2 (these three per `SAMPLES` samples), finish
    backward    upstream · (1 / Ω, λ / Ω), all parameters' gradients at once, hidden_gradient

with the kernels of `adversary_kernels`.

**Pooling.** At level mean a program of discriminate averages one block of columns of one document. The program that
is the last of its tile of documents to arrive then takes the tile through the discriminator. Which one that is varies
from run to run, what it computes does not. Levels cls and token copy their samples instead, a tile to a program.

**Discriminator.** Four products per tile, the left operand always from scratch memory that the program itself wrote
(or, for pooled documents, its tile's other programs), so that registers hold one accumulator at a time:

    a = x W1ᵀ + b1 → gelu(a), gelu'(a)      z = gelu(a) W2ᵀ + b2 → dz      da = gelu'(a) (dz W2)      dx = ± da W1

Products are fp32 made of three tf32 products each (tf32x3), sums are fp32. What the discriminator's own gradients need
(x, gelu(a), da, dz) stays in scratch, columns of one row per sample, for two plain products; sums over samples for the
biases go by tile, and finish adds the tiles in their order.

**Languages** that do not exist pass for 0, and finish makes the loss and both factors NaN, and with them all gradients:
to look for such languages outside would take as many launches again.

**Between the passes** live the parameters' gradients and dx, one row per sample: (D, H) at levels mean and cls.
Hidden's own gradient is written in hidden's dtype by the backward pass, where upstream (a loss scale), λ / Ω and the
token's share multiply dx before it is rounded. Under torch.compile it is written in fp32 by the forward pass, so that
one operator does for this path and for chunked: 4 T H bytes are kept, and read once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unibert_kernels.fused import adversary_kernels as kernels
from unibert_kernels.fused.launch import launch

SAMPLES = 16384
"""Samples that share the scratch memory of one launch: (H + 2F + L) x 64 KiB, some 80 MB at H = F = 384. A multiple
of a tile's rows."""
BLOCK = 64
"""Columns of a tile: hidden or intermediate ones. Languages come in one tile."""
DEPTH = 32
"""Terms of a product that are added at a time."""

Discriminator = tuple[Tensor, Tensor, Tensor, Tensor]
Results = tuple[Tensor, Tensor, Tensor, Tensor]


def adversary(
    hidden: Tensor,
    document_ids: Tensor,
    languages: Tensor,
    discriminator: Discriminator,
    wants: tuple[bool, ...],
    reversal: Tensor,
    level: str,
    objective: str,
    class_weights: Tensor | None,
) -> Results:
    """`unibert_kernels.adversary_loss` on one CUDA device, in fp32; ``discriminator`` is (w1, b1, w2, b2).

    Returns:
        () each: loss (differentiable with respect to those of hidden and discriminator that ``wants`` names) and Ω
        fp32, number of samples and hits int64.
    """
    result: Results = _Adversary.apply(
        wants, level, objective, document_ids, languages, reversal, class_weights, hidden, *discriminator
    )
    return result


def adversary_with_gradients(
    hidden: Tensor,
    document_ids: Tensor,
    languages: Tensor,
    discriminator: Discriminator,
    wants: tuple[bool, ...],
    reversal: Tensor,
    level: str,
    objective: str,
    class_weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
    """As `chunked.adversary`: `adversary`, and hidden's gradient right away, fp32, for upstream 1."""
    results, kept = _forward(
        hidden, document_ids, languages, discriminator, wants, reversal, level, objective, class_weights
    )
    wants_hidden, *wants_parameters = wants
    hidden_gradient = None
    if wants_hidden:
        hidden_gradient = _spread(kept.factors, kept, level, len(languages), hidden.shape, torch.float32)
    parameter_gradients: list[Tensor | None] = [None] * len(discriminator)
    if kept.gradients is not None:
        views = _views(kept.gradients, [parameter.shape for parameter in discriminator])
        inverse = kept.factors[0]
        for place, wanted in enumerate(wants_parameters):
            if wanted:
                parameter_gradients[place] = views[place] * inverse
    return *results, (hidden_gradient, *parameter_gradients)


class _Kept(NamedTuple):
    """What the backward pass needs; never a parameter, see `attach_gradients`."""

    document_ids: Tensor
    ranges: Tensor | None
    factors: Tensor
    """(2,): 1 / Ω for the gradients of parameters, λ / Ω for hidden's."""
    dx: Tensor | None
    gradients: Tensor | None
    """Of w1, w2, b1 and b2, flat, of Ω times the loss."""


def _forward(
    hidden: Tensor,
    document_ids: Tensor,
    languages: Tensor,
    discriminator: tuple[Tensor, ...],
    wants: tuple[bool, ...],
    reversal: Tensor,
    level: str,
    objective: str,
    class_weights: Tensor | None,
) -> tuple[Results, _Kept]:
    w1, b1, w2, b2 = (parameter.contiguous() for parameter in discriminator)
    document_ids, languages, hidden = document_ids.contiguous(), languages.contiguous(), hidden.contiguous()
    class_weights = None if class_weights is None else class_weights.contiguous()
    num_tokens, hidden_size = hidden.shape
    num_languages, intermediate_size = w2.shape
    num_documents, num_biases = len(languages), intermediate_size + num_languages
    padded_languages = max(DEPTH, 1 << (num_languages - 1).bit_length())
    num_samples = num_tokens if level == "token" else num_documents
    tile_rows, num_warps = _tile_rows_and_warps(level, padded_languages)
    num_tiles = _ceil_div(num_samples, tile_rows)
    backward = any(wants)
    fp32: dict[str, Any] = {"dtype": torch.float32, "device": hidden.device}

    ranges = None
    if level != "token":
        # Behind the documents' ranges discriminate counts the programs that have pooled, by tile.
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
            maxnreg=255,  # unbound, ptxas may spill to fit a third program onto a processor
        )
        if dw1 is not None and dw2 is not None:
            x, activation, da, dz, *_ = scratch[:number].split(scratch_columns, dim=1)
            if wants[1]:
                _add_product(dw1.view_as(w1), da, x, start > 0)
            if wants[3]:
                _add_product(dw2.view_as(w2), dz[:, :num_languages], activation, start > 0)

    # Apart, not views of one tensor: a registered operator may not return such.
    loss, weight_sum = torch.empty((), **fp32), torch.empty((), **fp32)
    count, correct = (torch.empty((), dtype=torch.int64, device=hidden.device) for _ in range(2))
    factors = torch.empty(2, **fp32)
    launch(
        kernels.finish_kernel,
        (_ceil_div(num_biases, BLOCK),),
        tile_sums_ptr=tile_sums,
        languages_ptr=languages,
        reversal_ptr=reversal,
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
    return (loss, weight_sum, count, correct), _Kept(document_ids, ranges, factors, dx, gradients)


def _add_product(total: Tensor, left: Tensor, right: Tensor, accumulate: bool) -> None:
    """Write leftᵀ right into ``total``, or add it to what stands there. Autocast leaves products alone that are given
    their ``out``."""
    torch.addmm(total, left.t(), right, beta=1 if accumulate else 0, out=total)


def _spread(
    factors: Tensor, kept: _Kept, level: str, num_documents: int, shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """Hidden's gradient: ``shape`` (T, H), in ``dtype``; ``factors`` are upstream times `_Kept.factors`."""
    assert kept.dx is not None
    num_tokens, hidden_size = shape
    hidden_gradient = kept.dx.new_empty(shape, dtype=dtype)
    launch(
        kernels.hidden_gradient_kernel,
        (_ceil_div(num_tokens, 32), _ceil_div(hidden_size, 128)),
        factors_ptr=factors,
        document_ids_ptr=kept.document_ids,
        ranges_ptr=kept.ranges,
        dx_ptr=kept.dx,
        hidden_gradient_ptr=hidden_gradient,
        num_tokens=num_tokens,
        num_documents=num_documents,
        hidden_size=hidden_size,
        LEVEL=level,
        TOKENS=32,
        BLOCK=128,
    )
    return hidden_gradient


def _views(flat: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of `_Kept.gradients` those of w1, b1, w2 and b2, whose ``shapes`` these are."""
    w1, b1, w2, b2 = shapes
    dw1, dw2, db1, db2 = flat.split([w1.numel(), w2.numel(), b1.numel(), b2.numel()])
    return dw1.view(w1), db1, dw2.view(w2), db2


def _ceil_div(size: int, block: int) -> int:
    """`triton.cdiv`, which takes microseconds on the host."""
    return -(-size // block)


class _Adversary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        wants: tuple[bool, ...],
        level: str,
        objective: str,
        document_ids: Tensor,
        languages: Tensor,
        reversal: Tensor,
        class_weights: Tensor | None,
        hidden: Tensor,
        *discriminator: Tensor,
    ) -> tuple[Tensor, ...]:
        results, kept = _forward(
            hidden, document_ids, languages, discriminator, wants, reversal, level, objective, class_weights
        )
        ctx.save_for_backward(*kept)
        ctx.level, ctx.num_documents, ctx.wants = level, len(languages), wants
        ctx.hidden_shape, ctx.hidden_dtype = hidden.shape, hidden.dtype
        ctx.parameters = [(parameter.shape, parameter.dtype) for parameter in discriminator]
        _, *metrics = results
        ctx.mark_non_differentiable(*metrics)
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        kept = _Kept(*ctx.saved_tensors)
        assert kept.gradients is not None
        wants_hidden, *wants = ctx.wants
        hidden_gradient = None
        factors = upstream * kept.factors
        if wants_hidden:
            hidden_gradient = _spread(factors, kept, ctx.level, ctx.num_documents, ctx.hidden_shape, ctx.hidden_dtype)
        # One product for all parameters of a dtype: they are one in practice, and a launch costs more than the product.
        parameter_gradients: list[Tensor | None] = [None] * len(wants)
        shapes, dtypes = zip(*ctx.parameters, strict=True)
        for dtype in {dtype for wanted, dtype in zip(wants, dtypes, strict=True) if wanted}:
            out = torch.empty_like(kept.gradients, dtype=dtype)
            views = _views(torch.mul(kept.gradients, factors[0], out=out), shapes)
            for place, wanted in enumerate(wants):
                if wanted and dtypes[place] == dtype:
                    parameter_gradients[place] = views[place]
        return *(None,) * 7, hidden_gradient, *parameter_gradients


def _tile_rows_and_warps(level: str, padded_languages: int) -> tuple[int, int]:
    """Documents: the 16 rows that tensor cores ask for, since there are few documents and many processors. Tokens:
    twice as many for each read of the weights. More rows, or fewer warps, and sm_80 spills registers.
    """
    if level == "token":
        return 32, 8
    return 16, 4 if padded_languages <= 128 else 8
