"""The file in a model folder with the mean vector of each language over training text."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unibert.errors import UserError
from unibert.files import replacing

MEANS_NAME = "language_means.safetensors"
"""Holds the mean of each language under its code, (H,) fp32, of the vectors that sentence-transformers makes."""


def save_language_means(folder: Path, means: dict[str, Tensor]) -> None:
    """Write the means of a model folder. Raises OSError if they cannot be written."""
    with replacing(folder / MEANS_NAME) as partial:
        save_file({code: mean.contiguous() for code, mean in means.items()}, partial)


def load_language_means(folder: Path) -> dict[str, Tensor] | None:
    """Read the means of a model folder; None if it has none.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / MEANS_NAME
    if not path.is_file():
        return None
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: is damaged ({error}); export the model again") from error
