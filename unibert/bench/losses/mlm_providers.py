"""Providers of the linear head with cross-entropy: UniBERT's paths and those of other libraries."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from unibert_kernels import mlm_head_loss

from unibert.bench.availability import NotAvailableError, require_package
from unibert.bench.losses.inputs import MLMInputs
from unibert.bench.losses.provider import (
    LossFunction,
    Provider,
    raise_if_bias,
    raise_if_not_cuda,
    single_candidate,
)

CHUNK_ROWS = (256, 512, 1024, 2048, 4096)
"""Rows per chunk among which chunked peers are tuned."""
CPU_DEFAULTS_LIMIT = 2**26
"""Maximum N x V at which peers run with their default chunks of a few rows on a CPU: more would take minutes."""


def _unibert(path: str) -> Provider:
    def loss(inputs: MLMInputs) -> Tensor:
        return mlm_head_loss(inputs.hidden, inputs.weight, inputs.labels, inputs.bias, path=path).loss

    return Provider(f"UniBERT {path}", "ours", single_candidate(loss))


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


def _raise_if_torch_lacks_it() -> None:
    if not hasattr(F, "linear_cross_entropy") or not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise NotAvailableError(f"torch {torch.__version__} has no chunked F.linear_cross_entropy")


def _torch_default(inputs: MLMInputs) -> dict[str, LossFunction]:
    _raise_if_torch_lacks_it()
    if not inputs.hidden.is_cuda and len(inputs.hidden) * len(inputs.weight) > CPU_DEFAULTS_LIMIT:
        raise NotAvailableError("its default chunks have a few rows, which takes minutes on a CPU at this shape")
    return {"": _torch_linear_cross_entropy(inputs, torch.nn.LinearCrossEntropyOptions())}


def _torch_tuned(inputs: MLMInputs) -> dict[str, LossFunction]:
    _raise_if_torch_lacks_it()
    options: dict[str, Any] = {"options=None": None}
    for rows in _chunk_rows(inputs):
        options[f"batch_chunk_size={rows}"] = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    return {option: _torch_linear_cross_entropy(inputs, value) for option, value in options.items()}


def _liger(inputs: MLMInputs) -> Any:
    raise_if_not_cuda(inputs.hidden, "liger-kernel")
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    return LigerFusedLinearCrossEntropyFunction


def _liger_default(inputs: MLMInputs) -> dict[str, LossFunction]:
    function = _liger(inputs)
    return {"": lambda: function.apply(inputs.hidden, inputs.weight, inputs.labels, inputs.bias)[0]}


def _liger_tuned(inputs: MLMInputs) -> dict[str, LossFunction]:
    """Candidates by ``chunk_mem_const``: a chunk has next_power_of_2(N / ceil(V / (chunk_mem_const x H))) rows."""
    function = _liger(inputs)
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

    if "chunk_mem_const" not in inspect.signature(fused_linear_cross_entropy_forward).parameters:
        raise NotAvailableError(f"liger-kernel {require_package('liger-kernel')} has no chunk_mem_const to tune")
    (num_rows, hidden_size), vocab_size = inputs.hidden.shape, len(inputs.weight)
    # Defaults of the arguments between the bias and the last, since autograd.Function.apply takes no keywords.
    defaults = (None, -100, 0.0, 0.0, "mean", None, False, None, False, False, False, None, None)

    def candidate(chunk_mem_const: int) -> LossFunction:
        arguments = (inputs.hidden, inputs.weight, inputs.labels, inputs.bias, *defaults, chunk_mem_const)
        return lambda: function.apply(*arguments)[0]

    candidates = {}
    for rows in _chunk_rows(inputs):
        # Rounded down, since a slightly larger value would double the rows.
        chunk_mem_const = max(1, vocab_size // (hidden_size * math.ceil(num_rows / rows)))
        candidates[f"chunk_mem_const={chunk_mem_const}, {rows} rows"] = candidate(chunk_mem_const)
    return candidates


def _cut_cross_entropy(preset: str) -> Provider:
    """cut-cross-entropy. ``cce_exact`` filters no gradients; ``cce_kahan_full_c`` adds compensated sums and a full
    dW."""

    def candidates(inputs: MLMInputs) -> dict[str, LossFunction]:
        raise_if_not_cuda(inputs.hidden, "cut-cross-entropy")
        raise_if_bias(inputs.bias, "cut-cross-entropy as released on PyPI")
        from cut_cross_entropy import LinearCrossEntropyImpl, linear_cross_entropy

        if hasattr(LinearCrossEntropyImpl, preset.upper()):
            options: dict[str, Any] = {"impl": preset}
        elif preset == "cce_exact":
            # The older version's equivalent of the preset.
            options = {"filter_eps": None}
        else:
            raise NotAvailableError(f"cut-cross-entropy {require_package('cut-cross-entropy')} has no {preset}")
        return {"": lambda: linear_cross_entropy(inputs.hidden, inputs.weight, inputs.labels, **options)}

    return Provider(preset, "peer", candidates)


def _deepspeed_chunked(inputs: MLMInputs) -> dict[str, LossFunction]:
    require_package("deepspeed")
    from deepspeed.runtime.chunked_cross_entropy import chunked_cross_entropy

    def loss() -> Tensor:
        return chunked_cross_entropy(F.linear(inputs.hidden, inputs.weight, inputs.bias), inputs.labels)

    return {"": loss}


def _deepspeed_tiled(inputs: MLMInputs) -> dict[str, LossFunction]:
    """Candidates by rows per chunk. Each chunk runs forward and backward at once; dW is summed in the weight's
    dtype."""
    require_package("deepspeed")
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
    """Chunk sizes to try: those below the number of rows, or all rows if there are none."""
    rows = len(inputs.hidden)
    return [size for size in CHUNK_ROWS if size < rows] or [rows]


PROVIDERS = (
    _unibert("chunked"),
    _unibert("recompute"),
    _unibert("exp-store"),
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
