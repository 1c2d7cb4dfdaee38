"""Attention within packed documents: three paths behind transformers' attention interface, with equal outputs.

``sdpa`` passes 4-D masks to torch's scaled_dot_product_attention, on any device. ``flex`` passes block masks to
flex_attention, which skips the blocks that no document spans. ``varlen`` treats the sequences as documents end to end
and needs no mask: on a GPU in one kernel, on a CPU one document after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import _dynamo as dynamo
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import flex_attention_mask
from unibert_kernels.paths import triton_installed

from unibert.model.document_attention import attend_by_document

Mask = TypeVar("Mask")

IMPLEMENTATIONS = {"sdpa": "sdpa", "flex": "unibert_flex", "varlen": "unibert_varlen"}
"""transformers' names of the paths; those registered here begin with the name of the package."""
ATTENTION_PATHS = ("auto", *IMPLEMENTATIONS)

_MIN_LENGTH_TIMES_WIDTH = 2**16
"""From this product of sequence length and hidden size on, varlen pays on a CPU. What masks cost a token grows with the
product; to go document by document costs the same for each. With documents of 76 tokens on two cores of 2017, both
cost alike at 256 × 108."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedDocuments:
    """Where the documents of B packed sequences of S tokens lie, in the forms that the paths need."""

    document_ids: Tensor
    """Number of each token's document, -1 on padding, (B, S) int64."""
    cu_seqlens: Tensor
    """Bounds of the documents in the flattened B * S tokens, from 0 to B * S, int32. The padding of a sequence counts
    as one more document. Empty documents may follow, whose bounds are all B * S."""
    max_seqlen: int
    """Largest distance between two neighbouring ``cu_seqlens``, or more."""
    _masks: dict[tuple[str, int | None], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def from_ids(cls, document_ids: Tensor) -> PackedDocuments:
        """Build from the ids alone; waits for the device."""
        first = torch.ones_like(document_ids, dtype=torch.bool)
        first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        bounds = F.pad(first.flatten().nonzero()[:, 0], (0, 1), value=document_ids.numel()).int()
        return cls(document_ids, bounds, int(bounds.diff().max()))

    @classmethod
    def from_counted_ids(cls, document_ids: Tensor, num_documents: int) -> PackedDocuments:
        """Build from the ids and their number, without waiting for the device; empty documents may follow."""
        first = torch.ones_like(document_ids, dtype=torch.bool)
        first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        places = torch.arange(document_ids.numel(), device=document_ids.device)
        # At most one padding a sequence; what is no start sorts to the end.
        bounds = torch.where(first.flatten(), places, document_ids.numel()).sort().values
        num_bounds = num_documents + len(document_ids) + 1
        bounds = F.pad(bounds, (0, num_bounds), value=document_ids.numel())[:num_bounds].int()
        return cls(document_ids, bounds, document_ids.shape[1])

    def mask(self, window: int | None) -> Tensor:
        """Return which token attends to which, (B, 1, S, S) bool: within a document, up to ``window`` positions apart.

        A padding position attends to the sequence's other padding, never to a document, so that no row of the softmax
        is empty. The mask is built once for student, teacher and all layers.
        """
        if ("sdpa", window) not in self._masks:
            allowed = self.document_ids[:, None, :, None] == self.document_ids[:, None, None, :]
            if window is not None:
                position = torch.arange(self.document_ids.shape[1], device=self.document_ids.device)
                allowed = allowed & ((position[:, None] - position[None, :]).abs() <= window)
            self._masks["sdpa", window] = allowed
        return self._masks["sdpa", window]

    def block_mask(self, window: int | None) -> BlockMask:
        """Return `mask` as a block mask."""
        if ("flex", window) not in self._masks:
            ids = self.document_ids

            def allowed(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                same_document = ids[sequence, query] == ids[sequence, key]
                return same_document if window is None else same_document & ((query - key).abs() <= window)

            # Without compilation, all S x S entries are in memory before they become blocks.
            create = _compiled(create_block_mask) if _should_compile(ids) else create_block_mask
            num_sequences, length = ids.shape
            self._masks["flex", window] = create(allowed, num_sequences, None, length, length, device=ids.device)
        return self._masks["flex", window]


def choose_attention_path(
    path: str, model: PreTrainedModel, device: torch.device, dtype: torch.dtype, *, length: int | None = None
) -> str:
    """Return the path that ``model`` takes on ``device`` in ``dtype`` if ``path`` is requested.

    ``auto`` means ``varlen`` if it can be used and, on a CPU, pays; else ``sdpa``. The choice of a training is logged
    once. It depends on what is passed here alone, so that a resumed run makes the same choice.

    Args:
        path: one of `ATTENTION_PATHS`.
        model: of which the configuration counts, and whether it is trained.
        device: device of the model.
        dtype: in which attention computes.
        length: tokens of a sequence; if None, ``varlen`` pays.

    Raises:
        ValueError: if ``path`` is unknown or names a path that cannot be used.
    """
    if path not in ATTENTION_PATHS:
        raise ValueError(f"attention: must be one of {', '.join(ATTENTION_PATHS)}, got {path!r}")
    trained = next(model.parameters()).requires_grad
    requested = "varlen" if path == "auto" else path
    obstacle = _obstacle(requested, model.config, device, dtype, trained=trained)
    if obstacle and path != "auto":
        raise ValueError(f"attention: {path} {obstacle}; take sdpa")
    if path == "auto" and device.type == "cpu" and length is not None:
        least = -(-_MIN_LENGTH_TIMES_WIDTH // model.config.hidden_size)
        if length < least:
            obstacle = obstacle or f"pays on a CPU from sequences of {least} tokens on"
    chosen = "sdpa" if obstacle else requested
    # Not a trained model's evaluations, whose sequences have other lengths.
    if (model.training or not trained) and _logger.isEnabledFor(logging.INFO):
        _log_once("attention" if trained else "teacher's attention", chosen, obstacle)
    return chosen


class DocumentBounds:
    """What varlen attention needs of `PackedDocuments`.

    A plain object, of which a compiled layer remembers the type alone. Of a tensor it would remember the size, of a
    number the value, and be compiled again for every other number of documents.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int) -> None:
        self.cu_seqlens, self.max_seqlen = cu_seqlens, max_seqlen

    @cached_property
    def on_host(self) -> list[int]:
        """The bounds as numbers."""
        return self.cu_seqlens.tolist()


def set_attention_path(path: str, model: PreTrainedModel, documents: PackedDocuments) -> dict[str, Any]:
    """Set the attention path of ``model``; return the arguments that pass ``documents`` to its forward pass."""
    implementation = IMPLEMENTATIONS[path]
    if model.config._attn_implementation != implementation:
        model.set_attn_implementation(implementation)
    if path == "varlen":
        return {"bounds": DocumentBounds(documents.cu_seqlens, documents.max_seqlen)}
    if path == "flex":
        return {"attention_mask": _by_layer_type(model.config, documents.block_mask)}
    return {"attention_mask": _by_layer_type(model.config, documents.mask)}


def _by_layer_type(config: PreTrainedConfig, mask: Callable[[int | None], Mask]) -> Mask | dict[str, Mask]:
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return mask(None)
    windows = {"full_attention": None, "sliding_attention": config.sliding_window}
    return {layer_type: mask(windows[layer_type]) for layer_type in dict.fromkeys(layer_types)}


def _obstacle(path: str, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, *, trained: bool) -> str:
    """Return why ``path`` cannot be used for a model of ``config``, an empty string if it can."""
    if path == "sdpa":
        return ""
    if path == "varlen" and device.type != "cpu":
        if device.type != "cuda":
            return f"needs a CPU or CUDA, these tensors are on {device.type}"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "needs a GPU of compute capability 8.0 or above"
        if dtype not in (torch.bfloat16, torch.float16):
            return f"computes in bf16 or fp16, not in {str(dtype).removeprefix('torch.')}"
    elif path == "flex" and device.type != "cuda" and trained:
        return f"has no backward pass on {device.type}"
    elif path == "flex" and device.type == "cuda" and not triton_installed():
        return "needs triton, which is not installed"
    for key in ("attention_dropout", "attention_probs_dropout_prob"):
        if trained and getattr(config, key, False):
            return f"has no dropout, and model.config.{key} is {getattr(config, key)}"
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if path == "varlen" and device.type == "cuda" and (width % 8 or width > 256):
        return f"needs heads whose width is a multiple of 8 up to 256, these have {width}"
    if path == "flex" and device.type == "cuda" and width < 16:
        return f"needs heads of width 16 or more, these have {width}"
    return ""


@cache
def _log_once(what: str, path: str, obstacle: str) -> None:
    _logger.info("%s: path %s%s", what, path, f" (varlen {obstacle})" if obstacle else "")


def _flex_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute attention for transformers: (B, heads, S, D) queries, keys and values to (B, S, heads, D)."""
    attend: Any = _compiled(flex_attention) if _should_compile(query) else flex_attention
    output = attend(query, key, value, block_mask=attention_mask, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


@torch.compiler.disable
def _varlen_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    bounds: DocumentBounds,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute attention as `_flex_forward` does; ``sliding_window`` includes the token itself.

    A compiled layer calls it uncompiled, since the bounds differ from batch to batch.
    """
    reach = None if sliding_window is None else sliding_window - 1
    if _goes_by_document(query):
        return attend_by_document(query, key, value, bounds.on_host, scale=scaling, reach=reach), None
    num_sequences, num_heads, length, width = query.shape
    flat_query, flat_key, flat_value = (
        tensor.transpose(1, 2).reshape(num_sequences * length, num_heads, width) for tensor in (query, key, value)
    )
    output = varlen_attn(
        flat_query,
        flat_key,
        flat_value,
        bounds.cu_seqlens,
        bounds.cu_seqlens,
        bounds.max_seqlen,
        bounds.max_seqlen,
        scale=scaling,
        window_size=(-1, -1) if reach is None else (reach, reach),
    )
    assert isinstance(output, Tensor)
    return output.view(num_sequences, length, num_heads, width), None


def _goes_by_document(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _should_compile(tensor: Tensor) -> bool:
    """Return whether to compile what uses ``tensor``: not on a CPU, which may lack a compiler, nor while compiling."""
    return tensor.is_cuda and not torch.compiler.is_compiling()


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Static shapes give faster kernels, but need a compilation for every shape, for layers with and without a window,
    # student and teacher, training and evaluation. Beyond torch's limit of 8, a function would run uncompiled, with all
    # S x S scores in memory.
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 64)
    return torch.compile(function, dynamic=False)


AttentionInterface.register(IMPLEMENTATIONS["flex"], _flex_forward)
AttentionInterface.register(IMPLEMENTATIONS["varlen"], _varlen_forward)
# For plain calls with a 2-D mask. varlen has no such function: without documents, a plain call of it fails.
AttentionMaskInterface.register(IMPLEMENTATIONS["flex"], flex_attention_mask)
