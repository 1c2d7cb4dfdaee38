"""Writing models as plain Hugging Face folders, without remote code."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from unibert.errors import UserError
from unibert.files import write_json
from unibert.model.architectures import first_position

# Saving a compact model takes a moment; a progress bar would only clutter the command's output.
transformers_logging.disable_progress_bar()

_STUDENT = "masked_lm."


def write_hugging_face(state: dict[str, Tensor], config_dir: Path, tokenizer_dir: Path, output: Path) -> None:
    """Write model (safetensors, fp32), configuration and tokenizer into a folder, which appears only when complete.

    Args:
        state: state dict of a trained :class:`unibert.model.unibert.UniBERT`, of which only the student is written.
        config_dir: folder with the student's ``config.json``.
        tokenizer_dir: folder of its tokenizer.
        output: folder to create; an existing one is replaced.

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
    write_model_folder(model, tokenizer_dir, output)


def write_model_folder(model: PreTrainedModel, tokenizer_dir: Path, output: Path) -> None:
    """Write a model with the tokenizer of a corpus; the folder appears only when complete and replaces an older one.

    transformers 4 and 5 can load it. ``model_max_length`` is the number of tokens that the model has positions for, if
    it is less than the tokenizer's own. Raises OSError if the folder cannot be written.
    """
    partial = output.with_name(f".partial-{output.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        for file in [tokenizer_dir / "tokenizer.json", *tokenizer_dir.glob("*.model")]:
            shutil.copy2(file, partial)
        config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
        # transformers 5 writes a class that version 4 does not know; both know this one.
        config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {"model_max_length": min(config["model_max_length"], _max_tokens(model))}
        write_json(partial / "tokenizer_config.json", config)
        _make_readable(partial)
        shutil.rmtree(output, ignore_errors=True)
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _max_tokens(model: PreTrainedModel) -> int:
    return int(model.config.max_position_embeddings) - first_position(model.config)


def _make_readable(folder: Path) -> None:
    """Give files the permissions that new files have; safetensors makes weights readable by their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)
