"""Encoders: building from a configuration, loading, and access to the parts that the objectives need."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from unibert.corpus.special_ids import OWN_SPECIAL_IDS, SpecialIds
from unibert.errors import UserError, short_message
from unibert.model.attention import PackedDocuments, choose_attention_path, set_attention_path
from unibert.model.config import ModelConfig
from unibert.model.vocabulary import adapt_to_corpus

# Compact models load and save quickly; progress bars would only interrupt the run's own.
transformers_logging.disable_progress_bar()

_SET_BY_TOKENIZER = ("vocab_size", "pad_token_id", "bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id")


def _bert_features(model: Any, hidden: Tensor) -> Tensor:
    return model.cls.predictions.transform(hidden)


def _roberta_features(model: Any, hidden: Tensor) -> Tensor:
    head = model.lm_head
    return head.layer_norm(nn.functional.gelu(head.dense(hidden)))


_FEATURES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "modernbert": lambda model, hidden: model.head(hidden),
    "bert": _bert_features,
    "roberta": _roberta_features,
    "xlm-roberta": _roberta_features,
}


def check_architecture(architecture: str, where: str) -> None:
    """Raise UserError for an architecture that this module does not know; ``where`` is the key or folder to name."""
    if architecture not in _FEATURES:
        raise UserError(
            f"{where}: architecture {architecture!r} is not supported; choose one of {', '.join(_FEATURES)}"
        )


def head_features(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Apply the MLM head except its last matrix: (..., H) hidden states to (..., H) features.

    The logits would be ``features @ decoder.weight.T + decoder.bias`` with ``decoder = model.get_output_embeddings()``.
    """
    return _FEATURES[model.config.model_type](model, hidden)


def attention_projections(model: PreTrainedModel, layer: int) -> list[nn.Linear]:
    """Return the modules whose outputs, concatenated, are the queries, keys and values (3H) of ``layer``."""
    backbone: Any = model.base_model
    if model.config.model_type == "modernbert":
        return [backbone.layers[layer].attn.Wqkv]
    attention = backbone.encoder.layer[layer].attention.self
    return [attention.query, attention.key, attention.value]


def encode(
    model: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor,
    documents: PackedDocuments,
    *,
    hidden_states: bool,
    attention: str = "auto",
) -> tuple[Tensor, ...]:
    """Compute the hidden states of packed sequences, with attention within documents.

    Args:
        model: masked language model; only its encoder runs. It keeps the attention path that is set here.
        input_ids: (B, S) int64.
        position_ids: (B, S) int64, from 0 in every document.
        documents: where the documents lie in the sequences.
        hidden_states: whether to return those of every layer, else only of the last.
        attention: one of `unibert.model.attention.ATTENTION_PATHS`.

    Returns:
        (B, S, H) tensors: embedding output, then each layer's output, the last one normalised as the head gets it.

    Raises:
        ValueError: if the model cannot take the attention path.
    """
    if model.config.model_type in ("roberta", "xlm-roberta"):
        # These architectures count positions from the padding id on.
        position_ids = position_ids + model.config.pad_token_id + 1
    path = choose_attention_path(attention, model, input_ids.device, _compute_dtype(model, input_ids.device))
    output = model.base_model(
        input_ids=input_ids,
        position_ids=position_ids,
        output_hidden_states=hidden_states,
        **set_attention_path(path, model, documents),
    )
    if not hidden_states:
        return (output.last_hidden_state,)
    return (*output.hidden_states[:-1], output.last_hidden_state)


def _compute_dtype(model: PreTrainedModel, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products: autocast's if that is on, else the weights'."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else model.dtype


def build_masked_lm(
    config: ModelConfig,
    vocab_size: int,
    sequence_length: int,
    *,
    special_ids: SpecialIds = OWN_SPECIAL_IDS,
    tokenizer_dir: Path | None = None,
) -> PreTrainedModel:
    """Build the student, freshly initialised (with torch's generator) or from another model's layers.

    Args:
        config: architecture and its settings.
        vocab_size: vocabulary size of the corpus's tokenizer.
        sequence_length: maximum of the run.
        special_ids: special ids of the corpus.
        tokenizer_dir: ``tokenizer`` folder of the corpus, to whose vocabulary an initial model is brought; None if
            there is no corpus yet.

    Raises:
        UserError: for an unknown setting (naming the nearest), an invalid value, or a folder to initialise from that
            does not fit.
    """
    if config.initialize_from is not None:
        return _initialized_from_layers(config, vocab_size, sequence_length, special_ids, tokenizer_dir)
    check_architecture(config.architecture, "model.architecture")
    return AutoModelForMaskedLM.from_config(_encoder_config(config, vocab_size, sequence_length, special_ids))


def load_masked_lm(folder: str | Path, key: str) -> PreTrainedModel:
    """Load a masked language model from a Hugging Face folder; ``key`` is the configuration key to name in errors.

    Raises:
        UserError: if the folder holds no usable model.
    """
    return _load(folder, key)[0]


def load_teacher(folder: str | Path, *, needs_head: bool) -> PreTrainedModel:
    """Load a teacher from a Hugging Face folder. Its masked-LM head may be missing unless ``needs_head``.

    Raises:
        UserError: if the folder holds no usable model, or lacks a head that is needed.
    """
    model, missing = _load(folder, "distillation.teacher")
    if missing and needs_head:
        raise UserError(
            f"distillation.logits: {folder} has no masked-LM head ({missing[0]} is missing); set distillation.logits "
            "to 0 and teach by relations or hidden, or choose another teacher"
        )
    return model


def _load(folder: str | Path, key: str) -> tuple[PreTrainedModel, list[str]]:
    """Return the model and the names of the head's tensors that are missing."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{key}: {folder} is not a Hugging Face model folder (it has no config.json)")
    try:
        with _quiet_transformers():
            model, loading = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{key}: the model in {folder} cannot be loaded: {short_message(error)}") from error
    check_architecture(model.config.model_type, f"{key} ({folder})")
    missing = sorted(loading["missing_keys"])
    if inside := [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]:
        raise UserError(f"{key}: {folder} is incomplete: its weights lack {len(inside)} tensors, the first {inside[0]}")
    return model, missing


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppress the report on tensors that are missing or unused, which is read from the loading information instead."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _encoder_config(
    config: ModelConfig, vocab_size: int, sequence_length: int, special_ids: SpecialIds
) -> PreTrainedConfig:
    defaults = AutoConfig.for_model(config.architecture)
    _check_settings(config.config, defaults)
    num_positions = positions_needed(config.architecture, sequence_length, special_ids.pad)
    settings = {"max_position_embeddings": num_positions, **config.config}
    try:
        built = AutoConfig.for_model(
            config.architecture, vocab_size=vocab_size, **_id_settings(special_ids), **settings
        )
    except Exception as error:  # transformers validates with its own, unrelated exception types
        raise UserError(f"model.config: {short_message(error)}; fix it in the run file") from error
    if built.hidden_size % built.num_attention_heads:
        raise UserError(
            f"model.config: hidden_size {built.hidden_size} is not a multiple of "
            f"num_attention_heads {built.num_attention_heads}; change one of them"
        )
    if built.max_position_embeddings < num_positions:
        raise UserError(
            f"model.config.max_position_embeddings: {built.max_position_embeddings} is too small for "
            f"training.sequence_length {sequence_length}"
        )
    return built


def positions_needed(architecture: str, sequence_length: int, pad: int) -> int:
    """Return the number of positions that a model needs; RoBERTa's are counted from the padding id on."""
    return sequence_length + (1 + pad if architecture.endswith("roberta") else 0)


def _id_settings(special_ids: SpecialIds) -> dict[str, int]:
    first, last = special_ids.prefix[:1], special_ids.suffix[-1:]
    settings = {"pad_token_id": special_ids.pad}
    settings |= {name: id for id in first or last for name in ("bos_token_id", "cls_token_id")}
    return settings | {name: id for id in last or first for name in ("eos_token_id", "sep_token_id")}


def _check_settings(settings: dict[str, Any], defaults: PreTrainedConfig) -> None:
    known = set(defaults.to_dict()) | {"local_attention", "global_attn_every_n_layers"}
    for key in settings:
        if key in _SET_BY_TOKENIZER:
            raise UserError(f"model.config.{key}: comes from the corpus's tokenizer; remove it from the run file")
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise UserError(f"model.config.{key}: {defaults.model_type} has no such setting{hint}")


def _initialized_from_layers(
    config: ModelConfig, vocab_size: int, sequence_length: int, special_ids: SpecialIds, tokenizer_dir: Path | None
) -> PreTrainedModel:
    assert config.initialize_from is not None
    source = load_masked_lm(config.initialize_from, "model.initialize_from")
    if tokenizer_dir is not None:
        adapt_to_corpus(source, config.initialize_from, tokenizer_dir, "model.initialize_from")
    if source.config.vocab_size != vocab_size:
        raise UserError(
            f"model.initialize_from: {config.initialize_from} has a vocabulary of {source.config.vocab_size}, "
            f"the corpus one of {vocab_size}; build the corpus with that model's tokenizer"
        )
    pad = source.config.pad_token_id or 0
    if source.config.max_position_embeddings < positions_needed(source.config.model_type, sequence_length, pad):
        raise UserError(
            f"model.initialize_from: {config.initialize_from} has {source.config.max_position_embeddings} positions, "
            f"too few for training.sequence_length {sequence_length}"
        )
    _check_settings(config.config, source.config)
    depth = source.config.num_hidden_layers
    layers = config.initialize_layers if config.initialize_layers is not None else list(range(depth))
    if not layers or any(not 0 <= layer < depth for layer in layers):
        raise UserError(f"model.initialize_layers: {layers} must name layers from 0 to {depth - 1}")
    num_layers = config.config.get("num_hidden_layers", len(layers))
    if num_layers != len(layers):
        raise UserError(
            f"model.config.num_hidden_layers: {num_layers}, while "
            + (
                f"model.initialize_layers names {len(layers)} layers; leave it out"
                if config.initialize_layers is not None
                else f"{config.initialize_from} has {depth} layers; name those to keep in model.initialize_layers"
            )
        )
    settings = source.config.to_dict() | {"num_hidden_layers": len(layers)} | _id_settings(special_ids)
    layer_types = settings.pop("layer_types", None)
    if layer_types is not None:
        settings["layer_types"] = [layer_types[layer] for layer in layers]
    student = AutoModelForMaskedLM.from_config(type(source.config).from_dict(settings | config.config))
    state = {
        name: tensor
        for name, tensor in _renumbered(source.state_dict(), layers).items()
        if name in student.state_dict() and student.state_dict()[name].shape == tensor.shape
    }
    missing = set(student.state_dict()) - set(state)
    if missing:
        raise UserError(
            f"model.initialize_from: {config.initialize_from} cannot start this student, {len(missing)} tensors differ "
            f"(first: {min(missing)}); give model.config the same sizes"
        )
    student.load_state_dict(state)
    return student


def _renumbered(state: dict[str, Tensor], layers: list[int]) -> dict[str, Tensor]:
    """Return the state dict of ``layers``, numbered from 0; tensors are named ``….layers.7.…`` or ``….layer.7.…``."""
    renumbered = {}
    for name, tensor in state.items():
        parts = name.split(".")
        index = next((i + 1 for i, part in enumerate(parts[:-1]) if part in ("layers", "layer")), None)
        if index is None or not parts[index].isdigit():
            renumbered[name] = tensor
            continue
        for new, old in enumerate(layers):
            if int(parts[index]) == old:
                renumbered[".".join([*parts[:index], str(new), *parts[index + 1 :]])] = tensor
    return renumbered


def freeze(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Return ``model`` on ``device`` in ``dtype``, in evaluation mode and without gradients."""
    model.requires_grad_(False)
    return nn.Module.to(model.eval(), device=device, dtype=dtype)
