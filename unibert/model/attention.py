"""Attention masks that keep packed documents apart."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig


def document_attention_mask(document_ids: Tensor, config: PreTrainedConfig) -> Tensor | dict[str, Tensor]:
    """Who may attend to whom when several documents share a row.

    Args:
        document_ids: (B, S) int64, equal within a document, -1 on padding.
        config: the encoder's configuration; one with ``layer_types`` gets a mask for each type.

    Returns:
        (B, 1, S, S) bool, True where attention is allowed, or a dict of such masks by layer type. A padding position
        attends to the row's other padding, never to a document, so that no row of the softmax is empty.
    """
    same_document = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return same_document
    masks = {"full_attention": same_document}
    if "sliding_attention" in layer_types:
        position = torch.arange(document_ids.shape[1], device=document_ids.device)
        near = (position[:, None] - position[None, :]).abs() <= config.sliding_window
        masks["sliding_attention"] = same_document & near
    return masks
