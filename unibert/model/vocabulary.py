"""A model's vocabulary brought to the ids of a corpus: rows of its embeddings and of its head, in another order."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_ID_SETTINGS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")


@torch.no_grad()
def take_vocabulary(model: PreTrainedModel, source_ids: npt.NDArray[np.int64]) -> None:
    """Make row i of embeddings and head what row ``source_ids[i]`` was, and adapt the configuration.

    Hidden states of new ids are those of the old ones, bit for bit.

    Args:
        model: masked language model or encoder, changed in place.
        source_ids: (V,) ids of the model, each at most once.

    Raises:
        ValueError: if ids are beyond the model's embeddings, or the padding id would move in an architecture that
            counts positions from it.
    """
    embeddings: Any = model.get_input_embeddings()
    if source_ids.max() >= embeddings.num_embeddings:
        raise ValueError(f"has {embeddings.num_embeddings} embeddings, the tokenizer ids up to {source_ids.max()}")
    new_ids = {old: new for new, old in enumerate(source_ids.tolist())}
    ids = torch.from_numpy(source_ids)
    settings = {key: new_ids.get(getattr(model.config, key, None)) for key in _ID_SETTINGS}
    if model.config.model_type.endswith("roberta") and settings["pad_token_id"] != model.config.pad_token_id:
        raise ValueError(f"counts positions from the padding id, which would move to {settings['pad_token_id']}")
    decoder: Any = model.get_output_embeddings()
    if decoder is not None:
        if decoder.weight is not embeddings.weight:
            _take(decoder, "weight", ids)
        if decoder.bias is not None:
            _take(decoder, "bias", ids)
        decoder.out_features = len(ids)
    _take(embeddings, "weight", ids)
    embeddings.num_embeddings = len(ids)
    embeddings.padding_idx = new_ids.get(embeddings.padding_idx)
    for key, value in settings.items():
        if getattr(model.config, key, None) is not None:
            setattr(model.config, key, value)
    model.config.vocab_size = len(ids)
    model.tie_weights()


def _take(module: nn.Module, name: str, ids: Tensor) -> None:
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(old[ids.to(old.device)].clone(), requires_grad=old.requires_grad))
