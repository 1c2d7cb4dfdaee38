"""The files of a model folder that sentence-transformers reads: how it makes a vector of hidden states."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from unibert.errors import UserError
from unibert.files import write_json

_MODULES, _TRANSFORMER, _MODEL = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
_POOLING, _DENSE, _MODULE_FOLDERS = "1_Pooling", "2_Dense", "[0-9]_*"

FILE_PATTERNS = ("*.json", f"{_MODULE_FOLDERS}/*")
"""Patterns of these files in a model on the hub."""


@dataclass(frozen=True)
class Projection:
    """The linear map from mean hidden states to a teacher's vectors."""

    weight: Tensor
    """(H_t, H), fp32."""
    bias: Tensor
    """(H_t,), fp32."""

    def apply(self, means: Tensor) -> Tensor:
        """Map (..., H) to (..., H_t)."""
        return means @ self.weight.T + self.bias


def write_mean_pooling(folder: Path, hidden_size: int, max_tokens: int, projection: Projection | None = None) -> None:
    """Write files for the mean over all tokens, in the older of the two forms that sentence-transformers 5 and 6 read.

    Args:
        folder: model folder.
        hidden_size: size of the hidden states and of the vector.
        max_tokens: number of tokens at which a text is cut.
        projection: linear map that the mean passes through.
    """
    modules = [("", "Transformer"), (_POOLING, "Pooling"), *([(_DENSE, "Dense")] if projection else [])]
    (folder / _POOLING).mkdir()
    if projection is not None:
        _write_dense(folder / _DENSE, projection)
    write_json(
        folder / _MODULES,
        [
            {"idx": index, "name": f"{index}", "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (path, name) in enumerate(modules)
        ],
    )
    write_json(folder / _TRANSFORMER, {"max_seq_length": max_tokens, "do_lower_case": False})
    others = ("pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")
    write_json(
        folder / _POOLING / "config.json",
        {"word_embedding_dimension": hidden_size, "pooling_mode_mean_tokens": True}
        | dict.fromkeys(others, False)
        | {"include_prompt": True},
    )
    write_json(folder / _MODEL, {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"})


def _write_dense(folder: Path, projection: Projection) -> None:
    folder.mkdir()
    size, hidden_size = projection.weight.shape
    settings = {"in_features": hidden_size, "out_features": size, "bias": True}
    write_json(folder / "config.json", settings | {"activation_function": "torch.nn.modules.linear.Identity"})
    tensors = {"linear.weight": projection.weight.contiguous(), "linear.bias": projection.bias}
    save_file(tensors, folder / "model.safetensors")


def read_projection(folder: Path) -> Projection | None:
    """Read the linear map that :func:`write_mean_pooling` has written into a model folder; None if there is none."""
    path = folder / _DENSE / "model.safetensors"
    if not path.is_file():
        return None
    tensors = load_file(path)
    return Projection(tensors["linear.weight"], tensors["linear.bias"])


def has_modules(folder: Path) -> bool:
    """Return whether a model folder says itself how sentence-transformers makes a vector."""
    return (folder / _MODULES).is_file()


def copy_modules(source: Path, folder: Path, max_tokens: int) -> None:
    """Copy the files of ``source`` into another model folder.

    Args:
        source: model folder for which :func:`has_modules` holds.
        folder: model folder to copy to.
        max_tokens: number of tokens at which a text is cut, if the source allows more.

    Raises:
        UserError: if a file of the source is not valid JSON.
    """
    for name in (_MODULES, _MODEL):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    for module in source.glob(_MODULE_FOLDERS):
        shutil.copytree(module, folder / module.name, copy_function=shutil.copyfile)
    transformer = source / _TRANSFORMER
    try:
        settings = json.loads(transformer.read_text(encoding="utf-8")) if transformer.is_file() else {}
    except ValueError as error:
        raise UserError(f"{transformer}: is not valid JSON ({error}); correct the file or remove it") from error
    length = settings.get("max_seq_length") or max_tokens
    write_json(folder / _TRANSFORMER, settings | {"max_seq_length": min(length, max_tokens)})
