"""Writing models as plain Hugging Face folders, without remote code."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from unibert.errors import UserError
from unibert.files import write_json
from unibert.model.architectures import longest_document
from unibert.model.sentence_transformers_files import Projection, copy_modules, has_modules, write_mean_pooling
from unibert.model.transformers_4 import version_4_settings
from unibert.model_card import CARD_NAME, EncoderFacts, Pretraining, Trimming, model_card

# Saving a compact model takes a moment; a progress bar would only clutter the command's output.
transformers_logging.disable_progress_bar()

WEIGHTS_NAME = "model.safetensors"
_STUDENT, _PROJECTIONS = "masked_lm.", "distiller.projections."


def write_hugging_face(
    state: dict[str, Tensor], config_dir: Path, tokenizer_dir: Path, output: Path, origin: Pretraining
) -> None:
    """Write model (safetensors, fp32), configuration, tokenizer and card as :func:`write_model_folder` does.

    Args:
        state: state dict of a trained :class:`unibert.model.unibert.UniBERT`, of which the student is written, and the
            projection of its last layer to a wider teacher, if that was trained.
        config_dir: folder with the student's ``config.json``.
        tokenizer_dir: folder of its tokenizer.
        output: folder to create; an existing one is replaced.
        origin: how the model was trained, for its card.

    Raises:
        UserError: if weights are missing or unknown.
    """
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(config_dir))
    student = {name.removeprefix(_STUDENT): tensor for name, tensor in state.items() if name.startswith(_STUDENT)}
    missing, unexpected = model.load_state_dict(student, strict=False)
    # A tied tensor may be stored under only one of its names.
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    mismatched = [name for name in missing if name not in tied] + unexpected
    if mismatched:
        raise UserError(
            f"the checkpoint does not fit {config_dir}/config.json: {', '.join(mismatched[:3])} missing or unknown"
        )
    model.tie_weights()
    projection = _projection(state, model.config.num_hidden_layers)
    write_model_folder(model, tokenizer_dir, output, origin, projection=projection)


def _projection(state: dict[str, Tensor], depth: int) -> Projection | None:
    """Return the trained projection of the last layer; that to the teacher's highest layer, if there are several."""
    prefix = f"{_PROJECTIONS}student{depth}_teacher"
    layers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    if not layers:
        return None
    name = prefix + max(layers, key=int)
    return Projection(state[f"{name}.weight"].float(), state[f"{name}.bias"].float())


def write_model_folder(
    model: PreTrainedModel,
    tokenizer_dir: Path,
    output: Path,
    origin: Pretraining | Trimming,
    pooling_from: Path | None = None,
    *,
    projection: Projection | None = None,
) -> None:
    """Write a model with the tokenizer of a corpus; the folder appears only when complete and replaces an older one.

    transformers 4 and 5 and sentence-transformers can load it. ``model_max_length`` is the number of tokens that the
    model has positions for, if it is less than the tokenizer's own. The folder's ``README.md`` is the model's card.

    Args:
        model: masked language model or encoder.
        tokenizer_dir: ``tokenizer`` folder of the corpus.
        output: folder to create.
        origin: how the model was made, for its card.
        pooling_from: model folder whose files decide how sentence-transformers makes a vector. By default, and if it
            has none, the vector is the mean of the last layer's hidden states over all tokens.
        projection: linear map that this mean passes through.

    Raises:
        OSError: if the folder cannot be written.
    """
    partial = output.with_name(f".partial-{output.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        version_4 = version_4_settings(model.config)
        _add_to_json(partial / "config.json", version_4)
        for file in [tokenizer_dir / "tokenizer.json", *tokenizer_dir.glob("*.model")]:
            shutil.copy2(file, partial)
        config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
        max_tokens = min(config["model_max_length"], longest_document(model.config))
        # transformers 5 writes a class that version 4 does not know; both know this one.
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens}
        write_json(partial / "tokenizer_config.json", config)
        pools_by_mean = pooling_from is None or not has_modules(pooling_from)
        if pooling_from is None or pools_by_mean:
            write_mean_pooling(partial, model.config.hidden_size, max_tokens, projection)
        else:
            copy_modules(pooling_from, partial, max_tokens)
        loads_in_version_4 = None not in version_4.values()
        facts = replace(
            _encoder_facts(model, max_tokens),
            loads_in_version_4=loads_in_version_4,
            pools_by_mean=pools_by_mean,
            projected_size=None if projection is None else len(projection.bias),
        )
        (partial / CARD_NAME).write_text(model_card(facts, origin), encoding="utf-8")
        _make_readable(partial)
        shutil.rmtree(output, ignore_errors=True)
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _add_to_json(file: Path, fields: dict[str, Any]) -> None:
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | fields)


def _encoder_facts(model: PreTrainedModel, max_tokens: int) -> EncoderFacts:
    config, embeddings = model.config, cast(nn.Embedding, model.get_input_embeddings())
    layer_types = getattr(config, "layer_types", None)
    return EncoderFacts(
        architecture=config.model_type,
        num_hidden_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        vocab_size=config.vocab_size,
        num_parameters=model.num_parameters(),
        num_embedding_parameters=embeddings.weight.numel(),
        max_tokens=max_tokens,
        has_masked_lm_head=model.get_output_embeddings() is not None,
        global_layers=layer_types and [i for i, kind in enumerate(layer_types) if kind == "full_attention"],
        local_attention=getattr(config, "local_attention", None),
    )


def _make_readable(folder: Path) -> None:
    """Give files the permissions that new files have; safetensors makes weights readable by their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)
