"""Providers of the discriminator behind gradient reversal at level mean: UniBERT's paths, eager, and compiled."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from unibert_kernels import adversary_loss

from unibert.bench.availability import NotAvailableError
from unibert.bench.losses.inputs import AdversaryInputs
from unibert.bench.losses.provider import LossFunction, Provider, single_candidate


def _arguments(inputs: AdversaryInputs) -> tuple[Tensor, ...]:
    return (
        inputs.hidden,
        inputs.document_ids,
        inputs.languages,
        inputs.weight,
        inputs.b1,
        inputs.w2,
        inputs.b2,
        inputs.reversal,
    )


def _unibert(path: str) -> Provider:
    def loss(inputs: AdversaryInputs) -> Tensor:
        return adversary_loss(*_arguments(inputs), path=path).loss

    return Provider(f"UniBERT {path}", "ours", single_candidate(loss))


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return -factor * upstream[0], None


def _eager(
    hidden: Tensor,
    document_ids: Tensor,
    languages: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    reversal: Tensor,
) -> Tensor:
    shape = (len(languages), hidden.shape[1])
    sums = torch.zeros(shape, device=hidden.device).index_add(0, document_ids, hidden.float())
    lengths = torch.zeros(len(languages), device=hidden.device).index_add(
        0, document_ids, torch.ones_like(document_ids, dtype=torch.float32)
    )
    pooled = _GradientReversal.apply(sums / lengths[:, None], reversal)
    return F.cross_entropy(F.linear(F.gelu(F.linear(pooled, w1, b1)), w2, b2), languages)


def _compiled(mode: str) -> Provider:
    def candidates(inputs: AdversaryInputs) -> dict[str, LossFunction]:
        if mode == "reduce-overhead" and not inputs.hidden.is_cuda:
            raise NotAvailableError("reduce-overhead uses CUDA graphs, which need a CUDA device")
        compiled = torch.compile(_eager, dynamic=False, mode=mode)

        def loss() -> Tensor:
            # In a new step outputs may overwrite those of the previous call.
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(*_arguments(inputs))

        return {"": loss}

    return Provider(f"torch.compile, {mode}", "peer", candidates)


PROVIDERS = (
    _unibert("chunked"),
    _unibert("fused"),
    Provider("eager", "peer", single_candidate(lambda inputs: _eager(*_arguments(inputs)))),
    _compiled("default"),
    _compiled("reduce-overhead"),
)
