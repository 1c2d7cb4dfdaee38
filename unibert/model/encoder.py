"""Encoders: building from a configuration, loading, and access to the parts that the objectives need."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from unibert.corpus.special_ids import OWN_SPECIAL_IDS, SpecialIds
from unibert.errors import UserError, short_message
from unibert.hub import is_on_hub, not_found
from unibert.model.architectures import (
    architecture_of,
    check_architecture,
    encoder_layers,
    first_position,
    positions_needed,
)
from unibert.model.attention import PackedDocuments, choose_attention_path, set_attention_path
from unibert.model.config import ModelConfig
from unibert.model.vocabulary import adapt_to_corpus

# Compact models load and save quickly; progress bars would only interrupt the run's own.
transformers_logging.disable_progress_bar()

_ROPE_THETAS = {"global_rope_theta": "full_attention", "local_rope_theta": "sliding_attention"}
"""ModernBERT's settings of transformers 4, which version 5 keeps by type of layer in ``rope_parameters``."""

_SET_BY_TOKENIZER = ("vocab_size", "pad_token_id", "bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id")


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
    position_ids = position_ids + first_position(model.config)
    if own_encoder := architecture_of(model.config).own_encoder:
        states = own_encoder(model.base_model, input_ids, position_ids, documents)
        return states if hidden_states else states[-1:]
    device = input_ids.device
    dtype, length = _compute_dtype(model, device), input_ids.shape[1]
    path = choose_attention_path(attention, model, device, dtype, length=length)
    with _kept_states(model if hidden_states else None) as kept:
        output = model.base_model(
            input_ids=input_ids,
            position_ids=position_ids,
            output_hidden_states=False,
            **set_attention_path(path, model, documents),
        )
    return (*kept[:-1], output.last_hidden_state)


@contextmanager
def _kept_states(model: PreTrainedModel | None) -> Iterator[list[Tensor]]:
    """Keep the first layer's input and each layer's output; nothing without a model.

    transformers' own switch leaves hooks inside of the layers, which a compiled layer cannot have.
    """
    states: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not states:
            states.append(inputs[0])
        states.append(output)

    handles = [] if model is None else [layer.register_forward_hook(keep) for layer in encoder_layers(model)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


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


def load_masked_lm(name: str | Path, key: str) -> PreTrainedModel:
    """Load a masked language model that can be trained.

    Args:
        name: model folder or hub id.
        key: configuration key to name in errors.

    Raises:
        UserError: if it cannot be found or used.
    """
    check_architecture(load_config(name, key).model_type, f"{key} ({name})")
    return _load(name, key)[0]


def load_teacher(name: str | Path, key: str, *, needs_head: bool) -> PreTrainedModel:
    """Load a teacher from a folder or the hub; ``key`` is the key to name in errors.

    Its masked-LM head may be missing unless ``needs_head``.

    Raises:
        UserError: if it cannot be found or used, mixes the documents of a sequence, or lacks a head that is needed.
    """
    config = load_config(name, key)
    check_architecture(config.model_type, f"{key} ({name})", teaches=True)
    if getattr(config, "conv_kernel_size", 0):
        raise UserError(
            f"{key}: {name} has a convolution, which would mix neighbouring documents; choose another teacher"
        )
    model, missing = _load(name, key)
    if not getattr(config, "legacy", True):
        missing = ["cls.predictions.decoder.weight"]
    if missing and needs_head:
        raise UserError(
            f"distillation.logits: {name} has no masked-LM head ({missing[0]} is missing); set distillation.logits "
            "to 0 and teach by relations or hidden, or choose another teacher"
        )
    return model


def load_config(name: str | Path, key: str) -> PreTrainedConfig:
    """Load the configuration of a model in a folder or on the Hugging Face hub; ``key`` is the key to name in errors.

    Raises:
        UserError: if there is no such model, or its configuration cannot be read.
    """
    on_hub = is_on_hub(name)
    if not on_hub and not (Path(name) / "config.json").is_file():
        raise UserError(f"{key}: {name} is not a Hugging Face model folder (it has no config.json)")
    try:
        with _quiet_transformers():
            return AutoConfig.from_pretrained(name)
    except Exception as error:  # transformers and the hub's client pass on whatever their parts raise
        reason = short_message(error)
        problem = not_found(name, reason) if on_hub else f"cannot read {name}/config.json: {reason}"
        raise UserError(f"{key}: {problem}") from error


def _load(name: str | Path, key: str) -> tuple[PreTrainedModel, list[str]]:
    """Return the model and the names of the head's tensors that are missing."""
    try:
        with _quiet_transformers():
            model, loading = AutoModelForMaskedLM.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{key}: the model in {name} cannot be loaded: {short_message(error)}") from error
    missing = sorted(loading["missing_keys"])
    if inside := [name for name in missing if name.startswith(f"{model.base_model_prefix}.")]:
        raise UserError(f"{key}: {name} is incomplete: its weights lack {len(inside)} tensors, the first {inside[0]}")
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
    ids = _id_settings(special_ids)
    num_positions = positions_needed(AutoConfig.for_model(config.architecture, **ids), sequence_length)
    settings = {"max_position_embeddings": num_positions, **_checked_settings(config.config, defaults)}
    if architecture_of(defaults).rotary:
        settings["max_position_embeddings"] = max(settings["max_position_embeddings"], num_positions)
    try:
        built = AutoConfig.for_model(config.architecture, vocab_size=vocab_size, **ids, **settings)
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


def _id_settings(special_ids: SpecialIds) -> dict[str, int]:
    first, last = special_ids.prefix[:1], special_ids.suffix[-1:]
    settings = {"pad_token_id": special_ids.pad}
    settings |= {name: id for id in first or last for name in ("bos_token_id", "cls_token_id")}
    return settings | {name: id for id in last or first for name in ("eos_token_id", "sep_token_id")}


def _checked_settings(settings: dict[str, Any], defaults: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings under the architecture's own names; raise UserError for a setting that it does not have."""
    known = set(defaults.to_dict()) | set(defaults.attribute_map) | {"local_attention", "global_attn_every_n_layers"}
    thetas = _ROPE_THETAS if architecture_of(defaults).rotary else {}
    known |= set(thetas)
    for key in settings:
        if key in _SET_BY_TOKENIZER:
            raise UserError(f"model.config.{key}: comes from the corpus's tokenizer; remove it from the run file")
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise UserError(f"model.config.{key}: {defaults.model_type} has no such setting{hint}")
    checked = {defaults.attribute_map.get(key, key): value for key, value in settings.items() if key not in thetas}
    for key in set(thetas) & set(settings):
        rope = checked.get("rope_parameters", defaults.rope_parameters)
        checked["rope_parameters"] = rope | {thetas[key]: rope[thetas[key]] | {"rope_theta": settings[key]}}
    return checked


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
    changes = _checked_settings(config.config, source.config)
    num_positions = positions_needed(source.config, sequence_length)
    if source.config.max_position_embeddings < num_positions:
        if not architecture_of(source.config).rotary:
            raise UserError(
                f"model.initialize_from: {config.initialize_from} has learnt {source.config.max_position_embeddings} "
                f"positions, too few for training.sequence_length {sequence_length}"
            )
        changes["max_position_embeddings"] = max(changes.get("max_position_embeddings", 0), num_positions)
    depth = source.config.num_hidden_layers
    layers = config.initialize_layers if config.initialize_layers is not None else list(range(depth))
    if not layers or any(not 0 <= layer < depth for layer in layers):
        raise UserError(f"model.initialize_layers: {layers} must name layers from 0 to {depth - 1}")
    depth_key = source.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    num_layers = changes.get(depth_key, len(layers))
    if num_layers != len(layers):
        raise UserError(
            f"model.config.{depth_key}: {num_layers}, while "
            + (
                f"model.initialize_layers names {len(layers)} layers; leave it out"
                if config.initialize_layers is not None
                else f"{config.initialize_from} has {depth} layers; name those to keep in model.initialize_layers"
            )
        )
    if config.initialize_fit:
        _check_narrowing(config, source.config, changes)
    settings = source.config.to_dict() | {depth_key: len(layers)} | _id_settings(special_ids)
    layer_types = settings.pop("layer_types", None)
    if layer_types is not None:
        settings["layer_types"] = [layer_types[layer] for layer in layers]
    student = AutoModelForMaskedLM.from_config(type(source.config).from_dict(settings | changes))
    shapes = {name: tensor.shape for name, tensor in student.state_dict().items()}
    state = {
        name: tensor
        for name, tensor in _renumbered(source.state_dict(), layers).items()
        if shapes.get(name) == tensor.shape
    }
    missing = set(shapes) - set(state)
    is_narrower = student.config.hidden_size < source.config.hidden_size
    if missing and not (config.initialize_fit and is_narrower):
        raise UserError(
            f"model.initialize_from: {config.initialize_from} cannot start this student, {len(missing)} tensors differ "
            f"(first: {min(missing)}); give model.config the same sizes, or set model.initialize_fit"
        )
    # A narrower student gets its layers from the fit, before the first step.
    student.load_state_dict(state, strict=not missing)
    return student


def _check_narrowing(config: ModelConfig, source: PreTrainedConfig, changes: dict[str, Any]) -> None:
    """Raise UserError unless `unibert.model.layer_fit` can make the student; complete ``changes`` by its heads."""
    if not architecture_of(source).has_bert_layers:
        raise UserError(
            f"model.initialize_fit: {config.initialize_from} is a {source.model_type}; only bert, roberta and "
            "xlm-roberta can be fitted"
        )
    for key in ("hidden_size", "intermediate_size"):
        if changes.get(key, 0) > getattr(source, key):
            raise UserError(
                f"model.config.{key}: {changes[key]} is more than the {getattr(source, key)} of "
                f"{config.initialize_from}; model.initialize_fit only narrows"
            )
    width, head_width = changes.get("hidden_size", source.hidden_size), source.hidden_size // source.num_attention_heads
    num_heads = changes.setdefault("num_attention_heads", width // head_width)
    if num_heads * head_width != width:
        raise UserError(
            f"model.config.hidden_size: heads of {config.initialize_from} are {head_width} wide and are kept whole, "
            f"so that {num_heads} of them make {num_heads * head_width}, not {width}; take a multiple of {head_width}, "
            "and leave num_attention_heads out"
        )
    fixed = ["max_position_embeddings", "type_vocab_size"] + (
        ["intermediate_size"] if width == source.hidden_size else []
    )
    for key in fixed:
        if changes.get(key, getattr(source, key)) != getattr(source, key):
            raise UserError(
                f"model.config.{key}: model.initialize_fit keeps the {getattr(source, key)} of "
                f"{config.initialize_from}; leave it out"
            )


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
