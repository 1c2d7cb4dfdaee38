"""The architectures of students and teachers: where each keeps the parts that the objectives need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from unibert.errors import UserError
from unibert.model.attention import PackedDocuments


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What differs between the masked language models of transformers."""

    features: Callable[[Any, Tensor], Tensor]
    """The MLM head except its last matrix: model and (..., H) hidden states to (..., H) features."""
    projections: Callable[[Any, int], list[nn.Linear]]
    """The modules whose outputs, concatenated, are queries, keys and values (3H) of a layer: model, index from 0."""
    has_bert_layers: bool = False
    """Whether embeddings and layers have BERT's modules under BERT's names."""
    rotary: bool = False
    """Whether positions are rotations, for any length, and not learned, each of which has weights."""
    counts_positions_from_pad: bool = False
    """Whether position ids begin after the padding id instead of at 0."""
    own_encoder: Callable[[Any, Tensor, Tensor, PackedDocuments], tuple[Tensor, ...]] | None = None
    """Computes all hidden states from base model, input ids, position ids and documents, for an encoder without
    transformers' attention interface. It can only teach, because it stores all scores of all layers."""


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Return the architecture of a model that has passed `check_architecture`."""
    return _ARCHITECTURES[config.model_type]


def check_architecture(model_type: str, where: str, *, teaches: bool = False) -> None:
    """Raise UserError for an architecture that cannot be trained, or cannot teach.

    Args:
        model_type: transformers' name of the architecture.
        where: key or folder to name.
        teaches: whether a teacher is meant, which is not trained.
    """
    known = [name for name, one in _ARCHITECTURES.items() if teaches or one.own_encoder is None]
    if model_type not in known:
        reason = "can only teach" if model_type in _ARCHITECTURES else "is not supported"
        raise UserError(f"{where}: architecture {model_type!r} {reason}; choose one of {', '.join(known)}")


def head_features(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Apply the MLM head except its last matrix: (..., H) hidden states to (..., H) features.

    The logits would be ``features @ decoder.weight.T + decoder.bias`` with ``decoder = model.get_output_embeddings()``.
    """
    return architecture_of(model.config).features(model, hidden)


def attention_projections(model: PreTrainedModel, layer: int) -> list[nn.Linear]:
    """Return the modules whose outputs, concatenated, are the queries, keys and values (3H) of ``layer``."""
    return architecture_of(model.config).projections(model, layer)


def encoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers of the encoder, first to last."""
    return [module for module in model.base_model.modules() if isinstance(module, GradientCheckpointingLayer)]


def hidden_matrices(model: PreTrainedModel) -> set[nn.Parameter]:
    """Return the matrices that the encoder's layers multiply by."""
    return {weight for layer in encoder_layers(model) for weight in layer.parameters() if weight.ndim == 2}


def positions_needed(config: PreTrainedConfig, length: int) -> int:
    """Return the number of positions that a model needs for documents of ``length`` tokens."""
    return length + first_position(config)


def longest_document(config: PreTrainedConfig) -> int:
    """Return the number of tokens of the longest document that a model has positions for."""
    return int(config.max_position_embeddings) - first_position(config)


def first_position(config: PreTrainedConfig) -> int:
    """Return the position id of a document's first token."""
    architecture = _ARCHITECTURES.get(config.model_type)
    return (config.pad_token_id or 0) + 1 if architecture and architecture.counts_positions_from_pad else 0


def _bert_features(model: Any, hidden: Tensor) -> Tensor:
    return model.cls.predictions.transform(hidden)


def _roberta_features(model: Any, hidden: Tensor) -> Tensor:
    head = model.lm_head
    return head.layer_norm(gelu(head.dense(hidden)))


def _distilbert_features(model: Any, hidden: Tensor) -> Tensor:
    return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))


def _bert_projections(model: Any, layer: int) -> list[nn.Linear]:
    attention = model.base_model.encoder.layer[layer].attention.self
    return [attention.query, attention.key, attention.value]


def _distilbert_projections(model: Any, layer: int) -> list[nn.Linear]:
    attention = model.base_model.transformer.layer[layer].attention
    return [attention.q_lin, attention.k_lin, attention.v_lin]


def _deberta_projections(model: Any, layer: int) -> list[nn.Linear]:
    attention = model.base_model.encoder.layer[layer].attention.self
    return [attention.query_proj, attention.key_proj, attention.value_proj]


def _deberta_states(
    encoder: Any, input_ids: Tensor, position_ids: Tensor, documents: PackedDocuments
) -> tuple[Tensor, ...]:
    # The model's own forward pass takes no mask over pairs of tokens; its parts do. Relative positions within a
    # document are those that it would have alone.
    embedded = encoder.embeddings(input_ids=input_ids, position_ids=position_ids)
    return encoder.encoder(embedded, documents.mask(None)[:, 0], output_hidden_states=True).hidden_states


_ROBERTA = Architecture(
    features=_roberta_features,
    projections=_bert_projections,
    has_bert_layers=True,
    counts_positions_from_pad=True,
)
_ARCHITECTURES = {
    "modernbert": Architecture(
        features=lambda model, hidden: model.head(hidden),
        projections=lambda model, layer: [model.base_model.layers[layer].attn.Wqkv],
        rotary=True,
    ),
    "bert": Architecture(features=_bert_features, projections=_bert_projections, has_bert_layers=True),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": Architecture(features=_distilbert_features, projections=_distilbert_projections),
    "deberta-v2": Architecture(features=_bert_features, projections=_deberta_projections, own_encoder=_deberta_states),
}
