"""Attention of concatenated documents on a CPU, one document after the other.

Torch's varlen attention runs on CUDA alone. With masks, a CPU computes the scores between documents too: for documents
of 100 tokens in sequences of 1,024, nine tenths of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def attend_by_document(
    query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int], *, scale: float | None, reach: int | None
) -> Tensor:
    """Compute attention within documents.

    Args:
        query: (B, heads, S, D) floating point, on the CPU.
        key: as ``query``.
        value: as ``query``.
        bounds: bounds of the documents in the B * S tokens, from 0 to B * S, each sequence's own among them.
        scale: factor of the scores, the inverse of the root of D by default.
        reach: how many positions apart tokens of a document attend to each other, any number by default.

    Returns:
        (B, S, heads, D), contiguous.
    """
    output: Tensor = _DocumentAttention.apply(query, key, value, bounds, scale, reach)
    return output


class _DocumentAttention(torch.autograd.Function):
    # Torch's own function for each document would copy every document into place in the forward and in the backward
    # pass, and record several steps for each.
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bounds: Sequence[int],
        scale: float | None,
        reach: int | None,
    ) -> Tensor:
        batch, heads, length, width = query.shape
        output = query.new_empty(batch, length, heads, width)
        places = _places(bounds, length)
        sums = []
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        for place in places:
            mask = _window_mask(place, reach, query)
            part, log_sum = attend(query[place], key[place], value[place], attn_mask=mask, scale=scale)
            output.transpose(1, 2)[place] = part
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, output, *sums)
        ctx.places, ctx.scale, ctx.reach = places, scale, reach
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *sums = ctx.saved_tensors
        gradient, output = gradient.transpose(1, 2), output.transpose(1, 2)
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        for place, log_sum in zip(ctx.places, sums, strict=True):
            parts = attend_backward(
                gradient[place],
                query[place],
                key[place],
                value[place],
                output[place],
                log_sum,
                0.0,
                False,
                attn_mask=_window_mask(place, ctx.reach, query),
                scale=ctx.scale,
            )
            for whole, part in zip(gradients, parts, strict=True):
                whole[place] = part
        return *gradients, None, None, None


Place = tuple[slice, slice, slice]


def _places(bounds: Sequence[int], length: int) -> list[Place]:
    """Return where the documents lie in (B, heads, S) of a tensor; empty ones are left out."""
    places = []
    for start, end in pairwise(bounds):
        if start < end:
            sequence, first = divmod(start, length)
            places.append((slice(sequence, sequence + 1), slice(None), slice(first, first + end - start)))
    return places


def _window_mask(place: Place, reach: int | None, query: Tensor) -> Tensor | None:
    """Return what is added to the scores of the document in ``place``, None if it is shorter than the window."""
    tokens = place[2].stop - place[2].start
    if reach is None or tokens <= reach + 1:
        return None
    return query.new_ones(tokens, tokens).tril(reach).triu(-reach).log()
