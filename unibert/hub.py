"""Models named by their id on the Hugging Face hub instead of a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from unibert.errors import UserError, short_message

_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def is_on_hub(name: str | Path) -> bool:
    """Return whether ``name`` is no folder here and has the form of a hub id, as ``intfloat/multilingual-e5-small``."""
    return not Path(name).exists() and _ID.fullmatch(str(name)) is not None


def not_found(name: str | Path, reason: str) -> str:
    """Return the sentence on a hub id that cannot be resolved."""
    return (
        f"{name} is neither a folder nor a model that the Hugging Face hub gives ({reason}); without network, fetch it "
        f"elsewhere (hf download {name} --local-dir FOLDER) and name that folder"
    )


def local_folder(name: str | Path, patterns: Sequence[str]) -> Path:
    """Return the folder of a model; of a model on the hub, one with its files of these patterns, fetched if need be.

    Raises:
        UserError: if the hub does not give it.
    """
    if not is_on_hub(name):
        return Path(name)
    # Only who names a hub id waits for this import.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=list(patterns)))
    except Exception as error:  # the hub's client passes on whatever its parts raise
        raise UserError(not_found(name, short_message(error))) from error


def local_model_folder(name: str | Path) -> Path:
    """Return `local_folder` with everything that a model needs, weights in PyTorch's format if there are no others."""
    folder = local_folder(name, ("*.json", "*.model", "*.txt", "*.safetensors"))
    if is_on_hub(name) and not any(folder.glob("*.safetensors")):
        folder = local_folder(name, ("pytorch_model*",))
    return folder
