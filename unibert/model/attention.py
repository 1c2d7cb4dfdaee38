"""Attention that keeps packed documents apart: three paths behind transformers' attention interface, equal outputs.

``sdpa`` hands torch's scaled_dot_product_attention 4-D masks, on any device. ``flex`` hands flex_attention block masks,
with which it leaves out the blocks that no document spans. ``varlen`` takes the sequences as one stretch of documents
end to end and needs no mask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
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

Mask = TypeVar("Mask")

IMPLEMENTATIONS = {"sdpa": "sdpa", "flex": "unibert_flex", "varlen": "unibert_varlen"}
"""The paths by transformers' names; ours begin with the package's."""
ATTENTION_PATHS = ("auto", *IMPLEMENTATIONS)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedDocuments:
    """Where the documents of B packed sequences of S tokens lie, in the forms that the paths want."""

    document_ids: Tensor
    """(B, S) int64, equal within a document, -1 on padding."""
    cu_seqlens: Tensor
    """Bounds of the documents in the flattened B * S tokens, from 0 to B * S; int32. Each sequence's padding counts as
    one document more."""
    max_seqlen: int
    """Of the stretches between the bounds."""
    _masks: dict[tuple[str, int | None], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def from_ids(cls, document_ids: Tensor) -> PackedDocuments:
        """For callers that know no more than the ids; waits for the device."""
        first = torch.ones_like(document_ids, dtype=torch.bool)
        first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        bounds = F.pad(first.flatten().nonzero()[:, 0], (0, 1), value=document_ids.numel()).int()
        return cls(document_ids, bounds, int(bounds.diff().max()))

    def mask(self, window: int | None) -> Tensor:
        """Who may attend to whom, (B, 1, S, S) bool: a document's tokens, at most ``window`` positions apart.

        A padding position attends to the sequence's other padding, never to a document, so that no row of the softmax
        is empty. Built once, for student, teacher and all layers.
        """
        if ("sdpa", window) not in self._masks:
            allowed = self.document_ids[:, None, :, None] == self.document_ids[:, None, None, :]
            if window is not None:
                position = torch.arange(self.document_ids.shape[1], device=self.document_ids.device)
                allowed = allowed & ((position[:, None] - position[None, :]).abs() <= window)
            self._masks["sdpa", window] = allowed
        return self._masks["sdpa", window]

    def block_mask(self, window: int | None) -> BlockMask:
        """As `mask`, in blocks."""
        if ("flex", window) not in self._masks:
            ids = self.document_ids

            def allowed(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                same_document = ids[sequence, query] == ids[sequence, key]
                return same_document if window is None else same_document & ((query - key).abs() <= window)

            # Uncompiled it writes all S x S entries out before it looks at blocks.
            create = _compiled(create_block_mask) if _compiles(ids) else create_block_mask
            num_sequences, length = ids.shape
            self._masks["flex", window] = create(allowed, num_sequences, None, length, length, device=ids.device)
        return self._masks["flex", window]


def choose_attention_path(path: str, model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> str:
    """The path that ``model`` takes on ``device`` when it computes in ``dtype`` and ``path`` is asked for.

    ``auto`` is ``varlen`` where that can serve, else ``sdpa``. The choice is logged once. It depends on the model's
    configuration, device and dtype alone, so that a run that is resumed chooses as before.

    Raises:
        ValueError: if a path was asked for by name that cannot serve.
    """
    if path not in ATTENTION_PATHS:
        raise ValueError(f"attention: must be one of {', '.join(ATTENTION_PATHS)}, got {path!r}")
    trained = next(model.parameters()).requires_grad
    wanted = "varlen" if path == "auto" else path
    obstacle = _obstacle(wanted, model.config, device, dtype, trained=trained)
    if obstacle and path != "auto":
        raise ValueError(f"attention: {path} {obstacle}; take sdpa")
    chosen = "sdpa" if obstacle else wanted
    if _logger.isEnabledFor(logging.INFO):
        _log_once("attention" if trained else "teacher's attention", chosen, obstacle)
    return chosen


def take_attention_path(path: str, model: PreTrainedModel, documents: PackedDocuments) -> dict[str, Any]:
    """Set ``model`` to attend by ``path``, and give the arguments with which its forward pass sees ``documents``."""
    implementation = IMPLEMENTATIONS[path]
    if model.config._attn_implementation != implementation:
        model.set_attn_implementation(implementation)
    if path == "varlen":
        return {"cu_seq_lens_q": documents.cu_seqlens, "max_length_q": documents.max_seqlen}
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
    """Why ``path`` cannot serve a model of ``config``, nothing if it can."""
    if path == "sdpa":
        return ""
    if path == "varlen":
        if device.type != "cuda":
            return f"needs CUDA tensors, these are on {device.type}"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "needs a GPU of compute capability 8.0 or above"
        if dtype not in (torch.bfloat16, torch.float16):
            return f"computes in bf16 or fp16, not in {str(dtype).removeprefix('torch.')}"
    elif device.type != "cuda" and trained:
        return f"has no backward pass on {device.type}"
    elif device.type == "cuda" and not triton_installed():
        return "needs triton, which is not installed"
    for key in ("attention_dropout", "attention_probs_dropout_prob"):
        if trained and getattr(config, key, False):
            return f"has no dropout, and model.config.{key} is {getattr(config, key)}"
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if path == "varlen" and (width % 8 or width > 256):
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
    """transformers' attention function: (B, heads, S, D) queries, keys and values to (B, S, heads, D)."""
    attend: Any = _compiled(flex_attention) if _compiles(query) else flex_attention
    output = attend(query, key, value, block_mask=attention_mask, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def _varlen_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As `_flex_forward`; ``sliding_window`` counts the token itself."""
    num_sequences, num_heads, length, width = query.shape
    flat_query, flat_key, flat_value = (
        tensor.transpose(1, 2).reshape(num_sequences * length, num_heads, width) for tensor in (query, key, value)
    )
    reach = -1 if sliding_window is None else sliding_window - 1
    output = varlen_attn(
        flat_query,
        flat_key,
        flat_value,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(reach, reach),
    )
    assert isinstance(output, Tensor)
    return output.view(num_sequences, length, num_heads, width), None


def _compiles(tensor: Tensor) -> bool:
    """Whether to compile what works on ``tensor``: not on a CPU, which may lack a compiler, nor while compiling."""
    return tensor.is_cuda and not torch.compiler.is_compiling()


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Static shapes make the better kernels. Layers with and without a window, student and teacher, training and
    # evaluation and every other shape then compile anew, and beyond torch's limit of 8 times a function would run
    # uncompiled, which writes S x S scores out.
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 64)
    return torch.compile(function, dynamic=False)


AttentionInterface.register(IMPLEMENTATIONS["flex"], _flex_forward)
AttentionInterface.register(IMPLEMENTATIONS["varlen"], _varlen_forward)
# For a plain call with a 2-D mask. Without documents varlen has nothing to go by, and a plain call of it fails.
AttentionMaskInterface.register(IMPLEMENTATIONS["flex"], flex_attention_mask)
