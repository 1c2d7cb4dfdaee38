"""The adversary in Triton: one launch pools the documents, classifies them and sends the gradient back to them.

The work is small (0.14 GFLOP for 128 documents at H = F = 384 and 107 languages), so time goes into launches and into
reading hidden and writing its gradient. The launches are

    forward     clear, `_find_documents`, `_discriminate` (one per `SAMPLES` samples), `_finish`, dW1, dW2
    backward    the upstream gradient / Ω, all parameters' gradients at once, `_hidden_gradient`

**Pooling.** At level mean a program of `_discriminate` averages one block of columns of one document. The program that
is the last of its tile of documents to arrive then takes the tile through the discriminator. Which one that is varies
from run to run, what it computes does not. Levels cls and token copy their samples instead, a tile to a program.

**Discriminator.** Four products per tile, the left operand always from scratch memory that the program itself wrote
(or, for pooled documents, its tile's other programs), so that registers hold one accumulator at a time:

    a = x W1ᵀ + b1 → gelu(a), gelu'(a)      z = gelu(a) W2ᵀ + b2 → dz      da = gelu'(a) (dz W2)      dx = ± da W1

Products are fp32 made of three tf32 products each (tf32x3), sums are fp32. What the discriminator's own gradients need
(x, gelu(a), da, dz) stays in scratch for two plain products; sums over samples for the biases go by tile, and `_finish`
adds the tiles in their order.

**Between the passes** live the parameters' gradients and dx, one row per sample: (D, H) at levels mean and cls.
Hidden's own gradient is written in hidden's dtype by the backward pass, where upstream (a loss scale), λ / Ω and the
token's share multiply dx before it is rounded. Under torch.compile it is written in fp32 by the forward pass, so that
one operator does for this path and for chunked: 4 T H bytes are kept, and read once more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

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
        one = torch.ones_like(kept.hidden_factor)
        hidden_gradient = _spread(one, kept, level, len(languages), hidden.shape, torch.float32)
    parameter_gradients: list[Tensor | None] = [None] * len(discriminator)
    if kept.gradients is not None:
        views = _views(kept.gradients, [parameter.shape for parameter in discriminator])
        for place, wanted in enumerate(wants_parameters):
            if wanted:
                parameter_gradients[place] = views[place] * kept.inverse
    return *results, (hidden_gradient, *parameter_gradients)


class _Kept(NamedTuple):
    """What the backward pass needs; never a parameter, see `attach_gradients`."""

    document_ids: Tensor
    ranges: Tensor | None
    inverse: Tensor
    hidden_factor: Tensor
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
    w1, _, w2, _ = parameters = [parameter.contiguous() for parameter in discriminator]
    document_ids, hidden = document_ids.contiguous(), hidden.contiguous()
    class_weights = None if class_weights is None else class_weights.contiguous()
    num_tokens, hidden_size = hidden.shape
    num_languages, intermediate_size = w2.shape
    num_documents, num_biases = len(languages), intermediate_size + num_languages
    padded_languages = max(DEPTH, triton.next_power_of_2(num_languages))
    num_samples = num_tokens if level == "token" else num_documents
    tile_rows, num_warps = _tile_rows_and_warps(level, padded_languages)
    num_tiles = triton.cdiv(num_samples, tile_rows)

    ranges = None
    if level != "token":
        ranges = document_ids.new_zeros(3 * num_documents + num_tiles, dtype=torch.int32)
        grid_of_tokens = (triton.cdiv(num_tokens, 1024),)
        launch(_find_documents, grid_of_tokens, document_ids, ranges, num_tokens, num_documents, BLOCK=1024)

    def scratch(*shape: int) -> Tensor:
        return hidden.new_empty(shape, dtype=torch.float32)

    rows = min(SAMPLES, num_tiles * tile_rows)
    samples, activation = scratch(rows, hidden_size), scratch(rows, intermediate_size)
    tile_sums = scratch(num_tiles, 4)
    da = dz = adverse_da = adverse_dz = dx = tile_biases = gradients = bias_gradients = None
    products: list[tuple[Tensor, Tensor, Tensor]] = []
    if any(wants):
        da, dz = scratch(rows, intermediate_size), scratch(rows, padded_languages)
        if objective == "uniform":
            adverse_da, adverse_dz = torch.empty_like(da), torch.empty_like(dz)
        dx, tile_biases = scratch(num_samples, hidden_size), scratch(num_tiles, num_biases)
        gradients = scratch(w1.numel() + w2.numel() + num_biases)
        dw1, dw2, bias_gradients = gradients.split([w1.numel(), w2.numel(), num_biases])
        if wants[1]:
            products.append((dw1.view_as(w1), da, samples))
        if wants[3]:
            products.append((dw2.view_as(w2), dz[:, :num_languages], activation))

    inputs = hidden, document_ids, languages.contiguous(), class_weights, ranges
    buffers = samples, activation, da, dz, adverse_da, adverse_dz, dx, tile_sums, tile_biases
    sizes = num_tokens, num_documents, hidden_size, intermediate_size, num_languages
    for start in range(0, max(1, num_samples), SAMPLES):
        number = min(SAMPLES, num_samples - start)
        grid: tuple[int, ...] = (triton.cdiv(number, tile_rows),)
        if level == "mean":
            grid = (number, triton.cdiv(hidden_size, BLOCK))
        launch(
            _discriminate,
            grid,
            *(*inputs, *parameters, *buffers, start, number, *sizes),
            num_warps=num_warps,
            maxnreg=255,  # unbound, ptxas may spill to fit a third program onto a processor
            LEVEL=level,
            OBJECTIVE=objective,
            BACKWARD=any(wants),
            ROWS=tile_rows,
            LANGUAGES=padded_languages,
            BLOCK=BLOCK,
            DEPTH=DEPTH,
        )
        with torch.autocast(hidden.device.type, enabled=False):
            for total, left, right in products:
                torch.addmm(total, left[:number].t(), right[:number], beta=1 if start else 0, out=total)

    loss, weight_sum, inverse, hidden_factor = (scratch() for _ in range(4))
    count, correct = (document_ids.new_empty((), dtype=torch.int64) for _ in range(2))
    results = loss, weight_sum, inverse, hidden_factor, count, correct, bias_gradients
    launch(
        _finish,
        (triton.cdiv(num_biases, BLOCK),),
        *(tile_sums, tile_biases, reversal, *results, num_tiles, num_biases),
        TILES=16,
        BLOCK=BLOCK,
    )
    kept = _Kept(document_ids, ranges, inverse, hidden_factor, dx, gradients)
    return (loss, weight_sum, count, correct), kept


def _spread(
    upstream: Tensor, kept: _Kept, level: str, num_documents: int, shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """Hidden's gradient: ``shape`` (T, H), in ``dtype``."""
    assert kept.dx is not None
    num_tokens, hidden_size = shape
    hidden_gradient = kept.dx.new_empty(shape, dtype=dtype)
    tensors = upstream, kept.hidden_factor, kept.document_ids, kept.ranges, kept.dx, hidden_gradient
    launch(
        _hidden_gradient,
        (triton.cdiv(num_tokens, 32), triton.cdiv(hidden_size, 128)),
        *(*tensors, num_tokens, num_documents, hidden_size),
        LEVEL=level,
        TOKENS=32,
        COLUMNS=128,
    )
    return hidden_gradient


def _views(flat: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """Of `_Kept.gradients` those of w1, b1, w2 and b2."""
    w1, b1, w2, _ = (shape.numel() for shape in shapes)
    offsets = 0, w1 + w2, w1, w1 + w2 + b1
    return [flat[offset : offset + shape.numel()].view(shape) for offset, shape in zip(offsets, shapes, strict=True)]


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
        if wants_hidden:
            hidden_gradient = _spread(upstream, kept, ctx.level, ctx.num_documents, ctx.hidden_shape, ctx.hidden_dtype)
        # One product for all parameters of a dtype: they are one in practice, and a launch costs more than the product.
        scale = upstream * kept.inverse
        scaled = {
            dtype: torch.mul(kept.gradients, scale, out=torch.empty_like(kept.gradients, dtype=dtype))
            for dtype in {dtype for wanted, (_, dtype) in zip(wants, ctx.parameters, strict=True) if wanted}
        }
        shapes = [shape for shape, _ in ctx.parameters]
        parameter_gradients = (
            _views(scaled[dtype], shapes)[place] if wanted else None
            for place, (wanted, (_, dtype)) in enumerate(zip(wants, ctx.parameters, strict=True))
        )
        return *(None,) * 7, hidden_gradient, *parameter_gradients


def _tile_rows_and_warps(level: str, padded_languages: int) -> tuple[int, int]:
    """Documents: the 16 rows that tensor cores ask for, since there are few documents and many processors. Tokens:
    twice as many for each read of the weights. More rows, or fewer warps, and sm_80 spills registers.
    """
    if level == "token":
        return 32, 8
    return 16, 4 if padded_languages <= 128 else 8


# Sizes that change with the batch are not specialised: that would compile anew in the midst of training.
@triton.jit(do_not_specialize=["num_tokens", "num_documents"])
def _find_documents(document_ids, ranges, num_tokens, num_documents, BLOCK: tl.constexpr):
    """``ranges`` (3, D) int32, zeros before: num_tokens - first token, last token + 1, number of tokens.
    Behind it `_discriminate` counts the programs that have pooled, by tile.

    Only the ends of runs of one id write here, and integers, so that neither contention nor order matters.
    """
    tokens = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(document_ids + tokens, mask=tokens < num_tokens, other=-1)
    before = tl.load(document_ids + tokens - 1, mask=(tokens > 0) & (tokens < num_tokens), other=-1)
    after = tl.load(document_ids + tokens + 1, mask=tokens + 1 < num_tokens, other=-1)
    begins = (ids >= 0) & (ids != before)
    ends = (ids >= 0) & (ids != after)
    firsts = ranges + ids
    pasts = firsts + num_documents
    lengths = pasts + num_documents
    tl.atomic_max(firsts, num_tokens - tokens, mask=begins, sem="relaxed")
    tl.atomic_max(pasts, tokens + 1, mask=ends, sem="relaxed")
    tl.atomic_add(lengths, -tokens, mask=begins, sem="relaxed")
    tl.atomic_add(lengths, tokens + 1, mask=ends, sem="relaxed")


@triton.jit
def _pool(
    hidden,
    document_ids,
    ranges,
    document,
    target,
    column,
    num_tokens,
    num_documents,
    hidden_size,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the mean of one document's tokens, columns from ``column`` on, to the row that ``target`` points to."""
    first = num_tokens - tl.load(ranges + document)
    past = tl.load(ranges + num_documents + document)
    length = tl.load(ranges + 2 * num_documents + document)
    columns = column + tl.arange(0, COLUMNS)
    inside = columns < hidden_size
    total = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for start in tl.range(first, past, TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        belongs = tl.load(document_ids + tokens, mask=tokens < past, other=-1) == document
        pointers = hidden + tokens.to(tl.int64)[:, None] * hidden_size + columns[None, :]
        total += tl.load(pointers, mask=belongs[:, None] & inside[None, :], other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / tl.maximum(length, 1).to(tl.float32)
    tl.store(target + columns, mean, mask=inside)


@triton.jit
def _product(
    left,
    right,
    rows,
    row_mask,
    columns,
    depth_size,
    num_columns,
    left_stride,
    right_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """left (rows, depth) times right (depth, columns), or times the transpose of right (columns, depth); fp32.

    left was written by other threads, on other processors even, so that it is read past the first-level cache.
    """
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for depth in tl.range(0, depth_size, DEPTH):
        depths = depth + tl.arange(0, DEPTH)
        inside = depths < depth_size
        a = tl.load(
            left + rows[:, None] * left_stride + depths[None, :],
            mask=row_mask[:, None] & inside[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        if TRANSPOSED:
            pointers = right + columns[:, None] * right_stride + depths[None, :]
            b = tl.load(pointers, mask=(columns < num_columns)[:, None] & inside[None, :], other=0.0).to(tl.float32).T
        else:
            pointers = right + depths[:, None] * right_stride + columns[None, :]
            b = tl.load(pointers, mask=inside[:, None] & (columns < num_columns)[None, :], other=0.0).to(tl.float32)
        product = tl.dot(a, b, product, input_precision="tf32x3")
    return product


@triton.jit(do_not_specialize=["start", "num_samples", "num_tokens", "num_documents"])
def _discriminate(
    hidden,
    document_ids,
    languages,
    class_weights,
    ranges,
    w1,
    b1,
    w2,
    b2,
    samples,
    activation,
    da,
    dz,
    adverse_da,
    adverse_dz,
    dx,
    tile_sums,
    tile_biases,
    start,
    num_samples,
    num_tokens,
    num_documents,
    hidden_size,
    intermediate_size,
    num_languages,
    LEVEL: tl.constexpr,
    OBJECTIVE: tl.constexpr,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    LANGUAGES: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Samples ``start`` … ``start + num_samples`` to their loss and dx; scratch rows count from ``start``.

    Grid: (num_samples, column blocks of hidden) at level mean, (tiles,) at the others.
    """
    if LEVEL == "mean":
        row = tl.program_id(0)
        tile = row // ROWS
        _pool(
            hidden,
            document_ids,
            ranges,
            start + row,
            samples + row * hidden_size,
            tl.program_id(1) * BLOCK,
            num_tokens,
            num_documents,
            hidden_size,
            BLOCK,
            BLOCK,
        )
        tl.debug_barrier()
        arrivals = ranges + 3 * num_documents
        before = tl.atomic_add(arrivals + start // ROWS + tile, 1, sem="acq_rel")
        # What follows is for the tile's last program, for whom the others' columns are visible.
        if before + 1 < tl.minimum(ROWS, num_samples - tile * ROWS) * tl.num_programs(1):
            return
    else:
        tile = tl.program_id(0)

    rows = tile * ROWS + tl.arange(0, ROWS)
    inside = rows < num_samples
    every = rows >= 0
    numbers = start + rows
    if LEVEL == "token":
        tokens = numbers
        documents = tl.load(document_ids + tokens, mask=inside, other=-1)
        exists = documents >= 0
    else:
        tokens = num_tokens - tl.load(ranges + numbers, mask=inside, other=0)
        documents = numbers
        exists = tokens < num_tokens
    labels = tl.load(languages + documents, mask=exists, other=0)
    weights = exists.to(tl.float32)
    if class_weights is not None:
        weights = tl.load(class_weights + labels, mask=exists, other=0.0).to(tl.float32)

    if LEVEL != "mean":
        for column in tl.range(0, hidden_size, BLOCK):
            columns = column + tl.arange(0, BLOCK)
            within = (columns < hidden_size)[None, :]
            pointers = hidden + tokens.to(tl.int64)[:, None] * hidden_size + columns[None, :]
            x = tl.load(pointers, mask=exists[:, None] & within, other=0.0).to(tl.float32)
            tl.store(samples + rows[:, None] * hidden_size + columns[None, :], x, mask=within)
        tl.debug_barrier()

    for column in tl.range(0, intermediate_size, BLOCK):
        columns = column + tl.arange(0, BLOCK)
        within = columns < intermediate_size
        a = _product(
            samples,
            w1,
            rows,
            inside,
            columns,
            hidden_size,
            intermediate_size,
            hidden_size,
            hidden_size,
            ROWS,
            BLOCK,
            DEPTH,
            TRANSPOSED=True,
        )
        a += tl.load(b1 + columns, mask=within, other=0.0).to(tl.float32)[None, :]
        gate = 0.5 + 0.5 * tl.erf(a * 0.7071067811865476)
        offsets = rows[:, None] * intermediate_size + columns[None, :]
        tl.store(activation + offsets, a * gate, mask=within[None, :])
        if BACKWARD:
            # gelu'(a) waits where da will be.
            slope = gate + a * tl.exp(-0.5 * a * a) * 0.3989422804014327
            tl.store(da + offsets, slope, mask=within[None, :])
    tl.debug_barrier()

    classes = tl.arange(0, LANGUAGES)
    known = (classes < num_languages)[None, :]
    z = _product(
        activation,
        w2,
        rows,
        every,
        classes,
        intermediate_size,
        num_languages,
        intermediate_size,
        intermediate_size,
        ROWS,
        LANGUAGES,
        DEPTH,
        TRANSPOSED=True,
    )
    z += tl.load(b2 + classes, mask=classes < num_languages, other=0.0).to(tl.float32)[None, :]
    z = tl.where(known, z, float("-inf"))
    is_label = classes[None, :] == labels[:, None]
    peak = tl.max(z, axis=1)
    label_z = tl.sum(tl.where(is_label, z, 0.0), axis=1)
    p = tl.exp(z - peak[:, None])
    total = tl.sum(p, axis=1)
    losses = weights * (peak + tl.log(total) - label_z)
    hits = exists & (label_z >= peak)
    global_tile = start // ROWS + tile
    tl.store(tile_sums + global_tile * 4, tl.sum(losses))
    tl.store(tile_sums + global_tile * 4 + 1, tl.sum(weights))
    tl.store(tile_sums + global_tile * 4 + 2, tl.sum(exists.to(tl.float32)))
    tl.store(tile_sums + global_tile * 4 + 3, tl.sum(hits.to(tl.float32)))

    if BACKWARD:
        p /= total[:, None]
        logit_offsets = rows[:, None] * LANGUAGES + classes[None, :]
        z_gradient = weights[:, None] * tl.where(is_label, p - 1, p)
        tl.store(dz + logit_offsets, z_gradient)
        biases = tile_biases + global_tile * (intermediate_size + num_languages)
        tl.store(biases + intermediate_size + classes, tl.sum(z_gradient, axis=0), mask=classes < num_languages)
        if OBJECTIVE == "uniform":
            tl.store(adverse_dz + logit_offsets, weights[:, None] * tl.where(known, p - 1 / num_languages, 0.0))
        tl.debug_barrier()

        for column in tl.range(0, intermediate_size, BLOCK):
            columns = column + tl.arange(0, BLOCK)
            within = columns < intermediate_size
            offsets = rows[:, None] * intermediate_size + columns[None, :]
            slope = tl.load(da + offsets, mask=within[None, :], other=0.0, cache_modifier=".cg")
            a_gradient = slope * _product(
                dz,
                w2,
                rows,
                every,
                columns,
                num_languages,
                intermediate_size,
                LANGUAGES,
                intermediate_size,
                ROWS,
                BLOCK,
                DEPTH,
                TRANSPOSED=False,
            )
            tl.store(biases + columns, tl.sum(a_gradient, axis=0), mask=within)
            if OBJECTIVE == "uniform":
                adverse = slope * _product(
                    adverse_dz,
                    w2,
                    rows,
                    every,
                    columns,
                    num_languages,
                    intermediate_size,
                    LANGUAGES,
                    intermediate_size,
                    ROWS,
                    BLOCK,
                    DEPTH,
                    TRANSPOSED=False,
                )
                tl.store(adverse_da + offsets, adverse, mask=within[None, :])
            tl.debug_barrier()  # until every thread has read its part of gelu'(a)
            tl.store(da + offsets, a_gradient, mask=within[None, :])
        tl.debug_barrier()

        if OBJECTIVE == "uniform":
            encoder_da = adverse_da
            sign = 1.0
        else:
            encoder_da = da
            sign = -1.0
        for column in tl.range(0, hidden_size, BLOCK):
            columns = column + tl.arange(0, BLOCK)
            x_gradient = sign * _product(
                encoder_da,
                w1,
                rows,
                every,
                columns,
                intermediate_size,
                hidden_size,
                intermediate_size,
                hidden_size,
                ROWS,
                BLOCK,
                DEPTH,
                TRANSPOSED=False,
            )
            targets = dx + numbers.to(tl.int64)[:, None] * hidden_size + columns[None, :]
            tl.store(targets, x_gradient, mask=inside[:, None] & (columns < hidden_size)[None, :])


@triton.jit(do_not_specialize=["num_tiles"])
def _finish(
    tile_sums,
    tile_biases,
    reversal,
    loss,
    weight_sum,
    inverse,
    hidden_factor,
    count,
    correct,
    bias_gradients,
    num_tiles,
    num_biases,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the tiles: the call's results, 1 / Ω and λ / Ω by the first program, db1 and db2 by all."""
    if tl.program_id(0) == 0:
        losses = tl.zeros((TILES,), tl.float32)
        weights = tl.zeros((TILES,), tl.float32)
        counts = tl.zeros((TILES,), tl.int64)
        hits = tl.zeros((TILES,), tl.int64)
        for start in tl.range(0, num_tiles, TILES):
            tiles = start + tl.arange(0, TILES)
            inside = tiles < num_tiles
            losses += tl.load(tile_sums + tiles * 4, mask=inside, other=0.0)
            weights += tl.load(tile_sums + tiles * 4 + 1, mask=inside, other=0.0)
            counts += tl.load(tile_sums + tiles * 4 + 2, mask=inside, other=0.0).to(tl.int64)
            hits += tl.load(tile_sums + tiles * 4 + 3, mask=inside, other=0.0).to(tl.int64)
        omega = tl.sum(weights)
        divisor = tl.where(omega > 0, omega, 1.0)
        tl.store(loss, tl.sum(losses) / divisor)
        tl.store(weight_sum, omega)
        tl.store(inverse, 1 / divisor)
        tl.store(hidden_factor, tl.load(reversal).to(tl.float32) / divisor)
        tl.store(count, tl.sum(counts))
        tl.store(correct, tl.sum(hits))
    if bias_gradients is not None:
        columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        within = columns < num_biases
        total = tl.zeros((TILES, BLOCK), tl.float32)
        for start in tl.range(0, num_tiles, TILES):
            tiles = start + tl.arange(0, TILES)
            pointers = tile_biases + tiles[:, None] * num_biases + columns[None, :]
            total += tl.load(pointers, mask=(tiles < num_tiles)[:, None] & within[None, :], other=0.0)
        tl.store(bias_gradients + columns, tl.sum(total, axis=0), mask=within)


@triton.jit(do_not_specialize=["num_tokens", "num_documents"])
def _hidden_gradient(
    upstream,
    hidden_factor,
    document_ids,
    ranges,
    dx,
    hidden_gradient,
    num_tokens,
    num_documents,
    hidden_size,
    LEVEL: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """(T, H) in hidden's dtype: upstream · λ / Ω · share of the token in its sample · dx of the sample; else 0."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = tokens < num_tokens
    ids = tl.load(document_ids + tokens, mask=inside, other=-1)
    receives = ids >= 0
    factor = tl.load(upstream) * tl.load(hidden_factor)
    factors = factor + tl.zeros((TOKENS,), tl.float32)
    sources = ids
    if LEVEL == "mean":
        factors /= tl.load(ranges + 2 * num_documents + ids, mask=receives, other=1).to(tl.float32)
    elif LEVEL == "cls":
        receives &= tl.load(ranges + ids, mask=receives, other=0) == num_tokens - tokens
    else:
        sources = tokens.to(tl.int64)
    within = (columns < hidden_size)[None, :]
    x = tl.load(dx + sources[:, None] * hidden_size + columns[None, :], mask=receives[:, None] & within, other=0.0)
    gradient = tl.where(receives[:, None], x * factors[:, None], 0.0)
    pointers = hidden_gradient + tokens.to(tl.int64)[:, None] * hidden_size + columns[None, :]
    tl.store(pointers, gradient.to(hidden_gradient.dtype.element_ty), mask=inside[:, None] & within)
