"""Linear head and cross-entropy: our paths, and everybody else's way to do it."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from unibert_kernels import mlm_head_loss

from unibert.bench.availability import NotAvailableError, installed
from unibert.bench.losses.inputs import MLMInputs
from unibert.bench.losses.provider import LossFunction, Provider, needs_cuda, single, without_bias

CHUNK_ROWS = (256, 512, 1024, 2048, 4096)
"""Rows a chunk that chunked peers are tuned over."""
CPU_DEFAULTS_LIMIT = 2**26
"""N x V above which the peers' defaults, chunks of a few rows, would take minutes on a CPU."""


def _ours(path: str) -> Provider:
    def loss(inputs: MLMInputs) -> Tensor:
        return mlm_head_loss(inputs.hidden, inputs.weight, inputs.labels, inputs.bias, path=path).loss

    return Provider(f"UniBERT {path}", "ours", single(loss))


def _eager(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels)


def _eager_candidates(inputs: MLMInputs) -> dict[str, LossFunction]:
    return {"": lambda: _eager(inputs.hidden, inputs.weight, inputs.labels, inputs.bias)}


def _compiled(inputs: MLMInputs) -> dict[str, LossFunction]:
    compiled = torch.compile(_eager, dynamic=False)
    return {"": lambda: compiled(inputs.hidden, inputs.weight, inputs.labels, inputs.bias)}


def _torch_linear_cross_entropy(inputs: MLMInputs, options: Any) -> LossFunction:
    return lambda: F.linear_cross_entropy(
        inputs.hidden, inputs.weight, inputs.labels, linear_bias=inputs.bias, options=options
    )


def _check_torch_has_it() -> None:
    if not hasattr(F, "linear_cross_entropy") or not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise NotAvailableError(f"torch {torch.__version__} has no chunked F.linear_cross_entropy")


def _torch_default(inputs: MLMInputs) -> dict[str, LossFunction]:
    _check_torch_has_it()
    if not inputs.hidden.is_cuda and len(inputs.hidden) * len(inputs.weight) > CPU_DEFAULTS_LIMIT:
        raise NotAvailableError("its default chunks are of a few rows, which takes minutes on a CPU at this shape")
    return {"": _torch_linear_cross_entropy(inputs, torch.nn.LinearCrossEntropyOptions())}


def _torch_tuned(inputs: MLMInputs) -> dict[str, LossFunction]:
    _check_torch_has_it()
    options: dict[str, Any] = {"options=None": None}
    for rows in _chunk_rows(inputs):
        options[f"batch_chunk_size={rows}"] = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    return {option: _torch_linear_cross_entropy(inputs, value) for option, value in options.items()}


def _liger(inputs: MLMInputs) -> Any:
    needs_cuda(inputs.hidden, "liger-kernel")
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    return LigerFusedLinearCrossEntropyFunction


def _liger_default(inputs: MLMInputs) -> dict[str, LossFunction]:
    function = _liger(inputs)
    return {"": lambda: function.apply(inputs.hidden, inputs.weight, inputs.labels, inputs.bias)[0]}


def _liger_tuned(inputs: MLMInputs) -> dict[str, LossFunction]:
    """By ``chunk_mem_const``: a chunk has next_power_of_2(N / ceil(V / (chunk_mem_const x H))) rows."""
    function = _liger(inputs)
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

    if "chunk_mem_const" not in inspect.signature(fused_linear_cross_entropy_forward).parameters:
        raise NotAvailableError(f"liger-kernel {installed('liger-kernel')} has no chunk_mem_const to tune")
    (num_rows, hidden_size), vocab_size = inputs.hidden.shape, len(inputs.weight)
    # autograd.Function.apply takes no keywords: the arguments between the bias and the last, at their defaults.
    defaults = (None, -100, 0.0, 0.0, "mean", None, False, None, False, False, False, None, None)

    def candidate(chunk_mem_const: int) -> LossFunction:
        arguments = (inputs.hidden, inputs.weight, inputs.labels, inputs.bias, *defaults, chunk_mem_const)
        return lambda: function.apply(*arguments)[0]

    candidates = {}
    for rows in _chunk_rows(inputs):
        # Rounded down: a little more would double the rows.
        chunk_mem_const = max(1, vocab_size // (hidden_size * math.ceil(num_rows / rows)))
        candidates[f"chunk_mem_const={chunk_mem_const}, {rows} rows"] = candidate(chunk_mem_const)
    return candidates


def _cut_cross_entropy(preset: str) -> Provider:
    """``cce_exact`` filters no gradients; ``cce_kahan_full_c`` adds compensated sums and keeps all of dW."""

    def candidates(inputs: MLMInputs) -> dict[str, LossFunction]:
        needs_cuda(inputs.hidden, "cut-cross-entropy")
        without_bias(inputs.bias, "cut-cross-entropy as released on PyPI")
        from cut_cross_entropy import LinearCrossEntropyImpl, linear_cross_entropy

        if hasattr(LinearCrossEntropyImpl, preset.upper()):
            options: dict[str, Any] = {"impl": preset}
        elif preset == "cce_exact":
            # What the preset of later versions stands for, by the older one's argument.
            options = {"filter_eps": None}
        else:
            raise NotAvailableError(f"cut-cross-entropy {installed('cut-cross-entropy')} has no {preset}")
        return {"": lambda: linear_cross_entropy(inputs.hidden, inputs.weight, inputs.labels, **options)}

    return Provider(preset, "peer", candidates)


def _deepspeed_chunked(inputs: MLMInputs) -> dict[str, LossFunction]:
    installed("deepspeed")
    from deepspeed.runtime.chunked_cross_entropy import chunked_cross_entropy

    def loss() -> Tensor:
        return chunked_cross_entropy(F.linear(inputs.hidden, inputs.weight, inputs.bias), inputs.labels)

    return {"": loss}


def _deepspeed_tiled(inputs: MLMInputs) -> dict[str, LossFunction]:
    """Chunks of rows, each sent forward and back at once; the weight's gradient is summed in the weight's dtype."""
    installed("deepspeed")
    from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledFusedLogitsLoss

    parameters = [tensor for tensor in (inputs.weight, inputs.bias) if tensor is not None]

    def tile(_: None, hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, inputs.weight, inputs.bias).float(), labels, reduction="sum") / len(
            inputs.hidden
        )

    def candidate(rows: int) -> LossFunction:
        shards = math.ceil(len(inputs.hidden) / rows)
        return lambda: TiledFusedLogitsLoss.apply(
            tile, None, inputs.hidden[None], inputs.labels[None], None, shards, parameters, "sum"
        )

    return {f"{rows} rows": candidate(rows) for rows in _chunk_rows(inputs)}


def _chunk_rows(inputs: MLMInputs) -> list[int]:
    """The chunk sizes worth a try: those that cut the rows, or the whole."""
    rows = len(inputs.hidden)
    return [size for size in CHUNK_ROWS if size < rows] or [rows]


PROVIDERS = (
    _ours("chunked"),
    _ours("recompute"),
    _ours("exp-store"),
    Provider("eager", "peer", _eager_candidates),
    Provider("torch.compile", "peer", _compiled),
    Provider("F.linear_cross_entropy, default", "peer", _torch_default, "default"),
    Provider("F.linear_cross_entropy, tuned", "peer", _torch_tuned, "tuned"),
    Provider("Liger, default", "peer", _liger_default, "default"),
    Provider("Liger, tuned", "peer", _liger_tuned, "tuned"),
    _cut_cross_entropy("cce_exact"),
    _cut_cross_entropy("cce_kahan_full_c"),
    Provider("DeepSpeed chunked_cross_entropy", "peer", _deepspeed_chunked),
    Provider("DeepSpeed TiledFusedLogitsLoss, tuned", "peer", _deepspeed_tiled, "tuned"),
)
