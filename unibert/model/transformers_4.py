"""What transformers 4 reads from a model's config.json instead of the fields that version 5 writes."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


def version_4_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields with which transformers 4.57 computes what version 5 computes; version 5 ignores them.

    Only ModernBERT needs any. Version 4 knows no list of layer types: every n-th layer from layer 0 on attends
    globally. ``global_attn_every_n_layers`` is None if no n describes the layers or the rotary embeddings are scaled,
    which version 4 cannot express. It then fails when it builds the model; without the field, it would take 3 and
    compute other vectors.
    """
    if config.model_type != "modernbert":
        return {}
    rope = config.rope_parameters
    is_global = [layer_type == "full_attention" for layer_type in config.layer_types]
    scaled = any(rope[layer_type]["rope_type"] != "default" for layer_type in set(config.layer_types))
    return {
        "global_attn_every_n_layers": None if scaled else _interval(is_global),
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
    }


def _interval(marked: list[bool]) -> int | None:
    """Return the smallest n for which exactly the entries 0, n, 2n, … are marked."""
    intervals = range(1, len(marked) + 1)
    return next((n for n in intervals if marked == [index % n == 0 for index in range(len(marked))]), None)
