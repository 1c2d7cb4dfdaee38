"""Adapting a model to the vocabulary of a corpus: selected rows of its embeddings and of its head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unibert.corpus.pretrained_tokenizer import PretrainedTokenizer, segmentation_digest
from unibert.errors import UserError
from unibert.model.architectures import first_position

_ID_SETTINGS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")


def adapt_to_corpus(model: PreTrainedModel, folder: str | Path, tokenizer_dir: Path, key: str) -> None:
    """Give a model the ids of a corpus, in place.

    The corpus must have been tokenized with the model's tokenizer, whole or trimmed. Rows of the model beyond its
    tokenizer's pieces are dropped.

    Args:
        model: model loaded from ``folder``.
        folder: model folder, or hub id, with the model's tokenizer.
        tokenizer_dir: ``tokenizer`` folder of the corpus.
        key: configuration key that names ``folder``, for messages.

    Raises:
        UserError: if the tokenizers differ, or the model does not fit its tokenizer.
    """
    own, corpus = PretrainedTokenizer.load(str(folder), key), PretrainedTokenizer.load(str(tokenizer_dir))
    digest, source_ids = segmentation_digest(own.content), corpus.origin.source_ids
    if digest == segmentation_digest(corpus.content):
        source_ids = np.arange(corpus.vocab_size)
    elif digest != corpus.origin.segmentation or source_ids is None:
        raise UserError(
            f"{key}: the tokenizer of {folder} differs from that of {tokenizer_dir} (made from {corpus.origin.name}); "
            f"build the corpus with --tokenizer {folder}, or choose a model with the corpus's tokenizer"
        )
    try:
        take_vocabulary(model, source_ids)
    except ValueError as error:
        raise UserError(f"{key}: the model in {folder} {error}") from error


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
        raise ValueError(
            f"has embeddings for {embeddings.num_embeddings} pieces, and its tokenizer ids up to {source_ids.max()}; "
            "use the tokenizer that the model was trained with"
        )
    if np.array_equal(source_ids, np.arange(embeddings.num_embeddings)):
        return
    new_ids = {old: new for new, old in enumerate(source_ids.tolist())}
    ids = torch.from_numpy(source_ids)
    settings = {name: new_ids.get(getattr(model.config, name, None)) for name in _ID_SETTINGS}
    if first_position(model.config) and settings["pad_token_id"] != model.config.pad_token_id:
        raise ValueError(
            f"counts positions from its padding id {model.config.pad_token_id}, which trimming would move to "
            f"{settings['pad_token_id']}; use the whole vocabulary"
        )
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
    for name, value in settings.items():
        if getattr(model.config, name, None) is not None:
            setattr(model.config, name, value)
    model.config.vocab_size = len(ids)
    model.tie_weights()


def _take(module: nn.Module, name: str, ids: Tensor) -> None:
    rows = getattr(module, name)
    setattr(module, name, nn.Parameter(rows[ids.to(rows.device)].clone(), requires_grad=rows.requires_grad))
