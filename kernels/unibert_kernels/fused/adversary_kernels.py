"""Kernels of `unibert_kernels.fused.adversary`, which describes how they work together.

Suffixes name the dimensions of a tile:

    t  tokens       n  samples      h  columns of hidden      f  intermediate columns      l  languages
    k  terms of a product that are added at a time            c  columns of any product

Pointers end in ``_ptr``, after the suffixes of their tile: ``dx_n_ptr`` points to each sample's row of dx.
"""

from __future__ import annotations

import triton
import triton.language as tl

NUM_TOTALS = tl.constexpr(4)
"""Number of sums over a tile's samples that `finish_kernel` adds up: loss, weights, samples, hits."""


# Sizes that change with the batch are not specialised: that would recompile kernels in the middle of training.
@triton.jit(do_not_specialize=["num_tokens", "num_documents"])
def find_documents_kernel(document_ids_ptr, ranges_ptr, num_tokens, num_documents, BLOCK: tl.constexpr):
    """Add each document's num_tokens - first token, last token + 1 and number of tokens to ``ranges`` (3, D) int32,
    which holds zeros before.

    1. Find the tokens at which a run of one document id begins or ends.
    2. Write what they say about their document. Only these tokens write, and integers, so that neither contention nor
       order matters.
    """
    # 1. Ends of runs.
    tokens_t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids_t_ptr = document_ids_ptr + tokens_t
    ids_t = tl.load(ids_t_ptr, mask=tokens_t < num_tokens, other=-1)
    before_t = tl.load(ids_t_ptr - 1, mask=(tokens_t > 0) & (tokens_t < num_tokens), other=-1)
    after_t = tl.load(ids_t_ptr + 1, mask=tokens_t + 1 < num_tokens, other=-1)
    begins_t = (ids_t >= 0) & (ids_t != before_t)
    ends_t = (ids_t >= 0) & (ids_t != after_t)

    # 2. Ranges of their documents.
    firsts_t_ptr = ranges_ptr + ids_t
    pasts_t_ptr = firsts_t_ptr + num_documents
    lengths_t_ptr = pasts_t_ptr + num_documents
    tl.atomic_max(firsts_t_ptr, num_tokens - tokens_t, mask=begins_t, sem="relaxed")
    tl.atomic_max(pasts_t_ptr, tokens_t + 1, mask=ends_t, sem="relaxed")
    tl.atomic_add(lengths_t_ptr, -tokens_t, mask=begins_t, sem="relaxed")
    tl.atomic_add(lengths_t_ptr, tokens_t + 1, mask=ends_t, sem="relaxed")


@triton.jit(do_not_specialize=["start", "num_samples", "num_tokens", "num_documents"])
def discriminate_kernel(
    hidden_ptr,
    document_ids_ptr,
    languages_ptr,
    class_weights_ptr,
    ranges_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    scratch_ptr,
    dx_ptr,
    tile_sums_ptr,
    start,
    num_samples,
    num_tokens,
    num_documents,
    hidden_size,
    intermediate_size,
    num_languages,
    scratch_stride,
    LEVEL: tl.constexpr,
    OBJECTIVE: tl.constexpr,
    BACKWARD: tl.constexpr,
    ROWS: tl.constexpr,
    LANGUAGES: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Loss and, with ``BACKWARD``, dx of the samples ``start`` … ``start + num_samples``.

    Grid: (num_samples, column blocks of hidden) at level mean, (tiles,) at the others. ``scratch`` has a row for each
    sample, counted from ``start``: x, gelu(a), da, dz and, for the objective uniform, the adverse dz and da.
    ``tile_sums`` has a row for each tile: `NUM_TOTALS` sums, then the sums of da and dz over its samples.

    1. Level mean: pool one block of columns of one document. The last program of a tile goes on with the tile.
    2. Find the tile's samples: first token, language, weight.
    3. Other levels: copy the samples into scratch.
    4. Forward: x → logits.
    5. Loss, hits, and the sums of the tile.
    6. Backward: probabilities → dz, da, dx.
    """
    # 1. Pooling.
    if LEVEL == "mean":
        sample = tl.program_id(0)
        tile = sample // ROWS
        _pool(
            hidden_ptr,
            document_ids_ptr,
            ranges_ptr,
            start + sample,
            tl.program_id(1) * BLOCK,
            scratch_ptr + sample * scratch_stride,
            num_tokens,
            num_documents,
            hidden_size,
            TOKENS=BLOCK,
            BLOCK=BLOCK,
        )
        tl.debug_barrier()
        arrivals_ptr = ranges_ptr + 3 * num_documents + start // ROWS + tile
        earlier = tl.atomic_add(arrivals_ptr, 1, sem="acq_rel")  # makes the earlier programs' columns visible here
        if earlier + 1 < tl.minimum(ROWS, num_samples - tile * ROWS) * tl.num_programs(1):
            return
    else:
        tile = tl.program_id(0)

    # 2. Samples.
    rows_n = tile * ROWS + tl.arange(0, ROWS)
    inside_n = rows_n < num_samples
    samples_n = start + rows_n
    if LEVEL == "token":
        tokens_n = samples_n
        documents_n = tl.load(document_ids_ptr + tokens_n, mask=inside_n, other=-1)
        exists_n = documents_n >= 0
    else:
        tokens_n = num_tokens - tl.load(ranges_ptr + samples_n, mask=inside_n, other=0)
        documents_n = samples_n
        exists_n = tokens_n < num_tokens
    labels_n = tl.load(languages_ptr + documents_n, mask=exists_n, other=0)
    labels_n = tl.where(_is_language(labels_n, num_languages), labels_n, 0)
    weights_n = exists_n.to(tl.float32)
    if class_weights_ptr is not None:
        weights_n = tl.load(class_weights_ptr + labels_n, mask=exists_n, other=0.0).to(tl.float32)

    # 3. Copies.
    scratch_n_ptr = scratch_ptr + rows_n * scratch_stride
    if LEVEL != "mean":
        for column in tl.range(0, hidden_size, BLOCK):
            columns_h = column + tl.arange(0, BLOCK)
            within_h = columns_h < hidden_size
            source_nh_ptr = hidden_ptr + tokens_n.to(tl.int64)[:, None] * hidden_size + columns_h[None, :]
            x_nh = tl.load(source_nh_ptr, mask=exists_n[:, None] & within_h[None, :], other=0.0).to(tl.float32)
            tl.store(scratch_n_ptr[:, None] + columns_h[None, :], x_nh, mask=within_h[None, :])
        tl.debug_barrier()

    # 4. Forward.
    languages_l = tl.arange(0, LANGUAGES)
    z_nl = _forward_tile(
        scratch_n_ptr,
        inside_n,
        languages_l,
        w1_ptr,
        b1_ptr,
        w2_ptr,
        b2_ptr,
        hidden_size,
        intermediate_size,
        num_languages,
        BACKWARD,
        BLOCK,
        DEPTH,
    )

    # 5. Loss.
    is_label_nl = languages_l[None, :] == labels_n[:, None]
    peak_n = tl.max(z_nl, axis=1)
    label_z_n = tl.sum(tl.where(is_label_nl, z_nl, 0.0), axis=1)
    p_nl = tl.exp(z_nl - peak_n[:, None])
    total_n = tl.sum(p_nl, axis=1)
    losses_n = weights_n * (peak_n + tl.log(total_n) - label_z_n)
    hits_n = exists_n & (label_z_n >= peak_n)
    tile_sums_ptr += (start // ROWS + tile) * (NUM_TOTALS + intermediate_size + num_languages)
    tl.store(tile_sums_ptr, tl.sum(losses_n))
    tl.store(tile_sums_ptr + 1, tl.sum(weights_n))
    tl.store(tile_sums_ptr + 2, tl.sum(exists_n.to(tl.float32)))
    tl.store(tile_sums_ptr + 3, tl.sum(hits_n.to(tl.float32)))

    # 6. Backward.
    if BACKWARD:
        p_nl /= total_n[:, None]
        dx_n_ptr = dx_ptr + samples_n.to(tl.int64) * hidden_size
        _backward_tile(
            p_nl,
            is_label_nl,
            weights_n,
            languages_l,
            scratch_n_ptr,
            inside_n,
            w1_ptr,
            w2_ptr,
            dx_n_ptr,
            tile_sums_ptr + NUM_TOTALS,
            hidden_size,
            intermediate_size,
            num_languages,
            OBJECTIVE,
            BLOCK,
            DEPTH,
        )


@triton.jit
def _is_language(labels, num_languages):
    """Others are treated as language 0, and `finish_kernel` makes the loss NaN."""
    return (labels >= 0) & (labels < num_languages)


@triton.jit
def _pool(
    hidden_ptr,
    document_ids_ptr,
    ranges_ptr,
    document,
    column,
    target_ptr,
    num_tokens,
    num_documents,
    hidden_size,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the mean of one document's tokens, from ``column`` on, to the row ``target``.

    1. Load the document's range.
    2. Sum its tokens, a block at a time; tokens of other documents may lie between them.
    3. Divide by their number and store.
    """
    # 1. Range.
    first = num_tokens - tl.load(ranges_ptr + document)
    past = tl.load(ranges_ptr + num_documents + document)
    length = tl.load(ranges_ptr + 2 * num_documents + document)
    columns_h = column + tl.arange(0, BLOCK)
    within_h = columns_h < hidden_size

    # 2. Sum.
    total_th = tl.zeros((TOKENS, BLOCK), tl.float32)
    for start in tl.range(first, past, TOKENS):
        tokens_t = start + tl.arange(0, TOKENS)
        belongs_t = tl.load(document_ids_ptr + tokens_t, mask=tokens_t < past, other=-1) == document
        source_th_ptr = hidden_ptr + tokens_t.to(tl.int64)[:, None] * hidden_size + columns_h[None, :]
        total_th += tl.load(source_th_ptr, mask=belongs_t[:, None] & within_h[None, :], other=0.0).to(tl.float32)

    # 3. Mean.
    mean_h = tl.sum(total_th, axis=0) / tl.maximum(length, 1).to(tl.float32)
    tl.store(target_ptr + columns_h, mean_h, mask=within_h)


@triton.jit
def _forward_tile(
    scratch_n_ptr,
    inside_n,
    languages_l,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    hidden_size,
    intermediate_size,
    num_languages,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Logits of the samples whose x is in scratch; -inf beyond the languages.

    1. a = x W1ᵀ + b1; gelu(a) and, with ``BACKWARD``, gelu'(a) go to scratch.
    2. z = gelu(a) W2ᵀ + b2.
    """
    activation_n_ptr = scratch_n_ptr + hidden_size
    slope_n_ptr = activation_n_ptr + intermediate_size  # the place of da later

    every_n = inside_n | True  # scratch holds whole tiles

    # 1. a, gelu(a), gelu'(a).
    for column in tl.range(0, intermediate_size, BLOCK):
        columns_f = column + tl.arange(0, BLOCK)
        within_f = columns_f < intermediate_size
        a_nf = _product(
            scratch_n_ptr,
            inside_n,
            w1_ptr,
            columns_f,
            intermediate_size,
            hidden_size,
            hidden_size,
            DEPTH,
            TRANSPOSED=True,
        )
        a_nf += tl.load(b1_ptr + columns_f, mask=within_f, other=0.0).to(tl.float32)[None, :]
        gate_nf = 0.5 + 0.5 * tl.erf(a_nf * 0.7071067811865476)
        tl.store(activation_n_ptr[:, None] + columns_f[None, :], a_nf * gate_nf, mask=within_f[None, :])
        if BACKWARD:
            slope_nf = gate_nf + a_nf * tl.exp(-0.5 * a_nf * a_nf) * 0.3989422804014327
            tl.store(slope_n_ptr[:, None] + columns_f[None, :], slope_nf, mask=within_f[None, :])
    tl.debug_barrier()

    # 2. z.
    known_l = languages_l < num_languages
    z_nl = _product(
        activation_n_ptr,
        every_n,
        w2_ptr,
        languages_l,
        num_languages,
        intermediate_size,
        intermediate_size,
        DEPTH,
        TRANSPOSED=True,
    )
    z_nl += tl.load(b2_ptr + languages_l, mask=known_l, other=0.0).to(tl.float32)[None, :]
    return tl.where(known_l[None, :], z_nl, float("-inf"))


@triton.jit
def _backward_tile(
    p_nl,
    is_label_nl,
    weights_n,
    languages_l,
    scratch_n_ptr,
    inside_n,
    w1_ptr,
    w2_ptr,
    dx_n_ptr,
    bias_sums_ptr,
    hidden_size,
    intermediate_size,
    num_languages,
    OBJECTIVE: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """dx of a tile from its probabilities; dz, da and their sums over the samples on the way.

    1. dz, and for the objective uniform the adverse dz, into scratch.
    2. da = gelu'(a) (dz W2), in the place of gelu'(a); likewise the adverse da.
    3. dx = ± da W1, from the adverse da for the objective uniform.
    """
    da_n_ptr = scratch_n_ptr + hidden_size + intermediate_size
    dz_n_ptr = da_n_ptr + intermediate_size
    adverse_dz_n_ptr = dz_n_ptr + languages_l.shape[0]
    adverse_da_n_ptr = adverse_dz_n_ptr + languages_l.shape[0]

    every_n = inside_n | True  # scratch holds whole tiles

    # 1. dz.
    known_l = languages_l < num_languages
    dz_nl = weights_n[:, None] * tl.where(is_label_nl, p_nl - 1, p_nl)
    tl.store(dz_n_ptr[:, None] + languages_l[None, :], dz_nl)
    tl.store(bias_sums_ptr + intermediate_size + languages_l, tl.sum(dz_nl, axis=0), mask=known_l)
    if OBJECTIVE == "uniform":
        adverse_dz_nl = weights_n[:, None] * tl.where(known_l[None, :], p_nl - 1 / num_languages, 0.0)
        tl.store(adverse_dz_n_ptr[:, None] + languages_l[None, :], adverse_dz_nl)
    tl.debug_barrier()

    # 2. da.
    for column in tl.range(0, intermediate_size, BLOCK):
        columns_f = column + tl.arange(0, BLOCK)
        within_f = columns_f < intermediate_size
        da_nf_ptr = da_n_ptr[:, None] + columns_f[None, :]
        slope_nf = tl.load(da_nf_ptr, mask=within_f[None, :], other=0.0, cache_modifier=".cg")
        da_nf = slope_nf * _product(
            dz_n_ptr,
            every_n,
            w2_ptr,
            columns_f,
            intermediate_size,
            num_languages,
            intermediate_size,
            DEPTH,
            TRANSPOSED=False,
        )
        tl.store(bias_sums_ptr + columns_f, tl.sum(da_nf, axis=0), mask=within_f)
        if OBJECTIVE == "uniform":
            adverse_da_nf = slope_nf * _product(
                adverse_dz_n_ptr,
                every_n,
                w2_ptr,
                columns_f,
                intermediate_size,
                num_languages,
                intermediate_size,
                DEPTH,
                TRANSPOSED=False,
            )
            tl.store(adverse_da_n_ptr[:, None] + columns_f[None, :], adverse_da_nf, mask=within_f[None, :])
        tl.debug_barrier()  # until every thread has read its part of gelu'(a)
        tl.store(da_nf_ptr, da_nf, mask=within_f[None, :])
    tl.debug_barrier()

    # 3. dx.
    if OBJECTIVE == "uniform":
        encoder_da_n_ptr = adverse_da_n_ptr
        sign = 1.0
    else:
        encoder_da_n_ptr = da_n_ptr
        sign = -1.0
    for column in tl.range(0, hidden_size, BLOCK):
        columns_h = column + tl.arange(0, BLOCK)
        dx_nh = sign * _product(
            encoder_da_n_ptr,
            every_n,
            w1_ptr,
            columns_h,
            hidden_size,
            intermediate_size,
            hidden_size,
            DEPTH,
            TRANSPOSED=False,
        )
        mask_nh = inside_n[:, None] & (columns_h < hidden_size)[None, :]
        tl.store(dx_n_ptr[:, None] + columns_h[None, :], dx_nh, mask=mask_nh)


@triton.jit
def _product(
    left_n_ptr,
    mask_n,
    right_ptr,
    columns_c,
    num_columns,
    num_terms,
    right_stride,
    DEPTH: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """left (N, K), given by a pointer to each row, times right (K, C), or times the transpose of right (C, K); fp32.

    left was written by other threads, even on other multiprocessors, so that it is read past the first-level cache.
    """
    product_nc = tl.zeros((mask_n.shape[0], columns_c.shape[0]), tl.float32)
    within_c = columns_c < num_columns
    for term in tl.range(0, num_terms, DEPTH):
        terms_k = term + tl.arange(0, DEPTH)
        within_k = terms_k < num_terms
        left_nk = tl.load(
            left_n_ptr[:, None] + terms_k[None, :],
            mask=mask_n[:, None] & within_k[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        if TRANSPOSED:
            right_ck_ptr = right_ptr + columns_c[:, None] * right_stride + terms_k[None, :]
            right_ck = tl.load(right_ck_ptr, mask=within_c[:, None] & within_k[None, :], other=0.0)
            right_kc = right_ck.to(tl.float32).T
        else:
            right_kc_ptr = right_ptr + terms_k[:, None] * right_stride + columns_c[None, :]
            right_kc = tl.load(right_kc_ptr, mask=within_k[:, None] & within_c[None, :], other=0.0).to(tl.float32)
        product_nc = tl.dot(left_nk, right_kc, product_nc, input_precision="tf32x3")
    return product_nc


@triton.jit(do_not_specialize=["num_tiles", "num_documents"])
def finish_kernel(
    tile_sums_ptr,
    languages_ptr,
    reversal_ptr,
    loss_ptr,
    weight_sum_ptr,
    count_ptr,
    correct_ptr,
    factors_ptr,
    bias_gradients_ptr,
    num_tiles,
    num_documents,
    num_languages,
    num_biases,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the tiles.

    1. The first program: results of the call, and ``factors`` (2,), 1 / Ω and λ / Ω. A language that does not exist,
       even of a document without tokens, makes loss and factors NaN.
    2. Every program: a block of the biases' gradients, db1 and db2.
    """
    stride = NUM_TOTALS + num_biases
    # 1. Results.
    if tl.program_id(0) == 0:
        losses = tl.zeros((TILES,), tl.float32)
        weights = tl.zeros((TILES,), tl.float32)
        counts = tl.zeros((TILES,), tl.int64)
        hits = tl.zeros((TILES,), tl.int64)
        for start in tl.range(0, num_tiles, TILES):
            tiles = start + tl.arange(0, TILES)
            inside = tiles < num_tiles
            totals_ptr = tile_sums_ptr + tiles * stride
            losses += tl.load(totals_ptr, mask=inside, other=0.0)
            weights += tl.load(totals_ptr + 1, mask=inside, other=0.0)
            counts += tl.load(totals_ptr + 2, mask=inside, other=0.0).to(tl.int64)
            hits += tl.load(totals_ptr + 3, mask=inside, other=0.0).to(tl.int64)
        invalid = tl.zeros((BLOCK,), tl.int32)
        for start in tl.range(0, num_documents, BLOCK):
            documents = start + tl.arange(0, BLOCK)
            labels = tl.load(languages_ptr + documents, mask=documents < num_documents, other=0)
            invalid |= tl.where(_is_language(labels, num_languages), 0, 1)
        one = tl.where(tl.max(invalid) > 0, float("nan"), 1.0)
        omega = tl.sum(weights)
        divisor = tl.where(omega > 0, omega, 1.0)
        tl.store(loss_ptr, one * tl.sum(losses) / divisor)
        tl.store(weight_sum_ptr, omega)
        tl.store(count_ptr, tl.sum(counts))
        tl.store(correct_ptr, tl.sum(hits))
        tl.store(factors_ptr, one / divisor)
        tl.store(factors_ptr + 1, one * tl.load(reversal_ptr).to(tl.float32) / divisor)

    # 2. Gradients of the biases.
    if bias_gradients_ptr is not None:
        columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        within = columns < num_biases
        total = tl.zeros((TILES, BLOCK), tl.float32)
        for start in tl.range(0, num_tiles, TILES):
            tiles = start + tl.arange(0, TILES)
            source_ptr = tile_sums_ptr + tiles[:, None] * stride + NUM_TOTALS + columns[None, :]
            total += tl.load(source_ptr, mask=(tiles < num_tiles)[:, None] & within[None, :], other=0.0)
        tl.store(bias_gradients_ptr + columns, tl.sum(total, axis=0), mask=within)


@triton.jit(do_not_specialize=["num_tokens", "num_documents"])
def hidden_gradient_kernel(
    factors_ptr,
    document_ids_ptr,
    ranges_ptr,
    dx_ptr,
    hidden_gradient_ptr,
    num_tokens,
    num_documents,
    hidden_size,
    LEVEL: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Hidden's gradient (T, H) in its dtype: the second of ``factors`` · the token's share of its sample · dx of the
    sample; 0 for a token without a sample.

    1. Each token's sample and factor.
    2. A block of columns of the gradient.
    """
    # 1. Samples and factors.
    tokens_t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside_t = tokens_t < num_tokens
    ids_t = tl.load(document_ids_ptr + tokens_t, mask=inside_t, other=-1)
    receives_t = ids_t >= 0
    factors_t = tl.load(factors_ptr + 1) + tl.zeros((TOKENS,), tl.float32)
    samples_t = ids_t
    if LEVEL == "mean":
        factors_t /= tl.load(ranges_ptr + 2 * num_documents + ids_t, mask=receives_t, other=1).to(tl.float32)
    elif LEVEL == "cls":
        receives_t &= tl.load(ranges_ptr + ids_t, mask=receives_t, other=0) == num_tokens - tokens_t
    else:
        samples_t = tokens_t.to(tl.int64)

    # 2. Gradient.
    columns_h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within_h = columns_h < hidden_size
    source_th_ptr = dx_ptr + samples_t[:, None] * hidden_size + columns_h[None, :]
    dx_th = tl.load(source_th_ptr, mask=receives_t[:, None] & within_h[None, :], other=0.0)
    gradient_th = tl.where(receives_t[:, None], dx_th * factors_t[:, None], 0.0)
    target_th_ptr = hidden_gradient_ptr + tokens_t.to(tl.int64)[:, None] * hidden_size + columns_h[None, :]
    mask_th = inside_t[:, None] & within_h[None, :]
    tl.store(target_th_ptr, gradient_th.to(hidden_gradient_ptr.dtype.element_ty), mask=mask_th)
