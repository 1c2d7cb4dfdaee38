"""``python -m unibert.study.fresh_weights MODEL SEED OUTPUT``: a model's architecture with fresh weights."""

from __future__ import annotations

import sys
from pathlib import Path

from unibert.errors import UserError
from unibert.evaluation.embeddings import load_encoder
from unibert.hub import local_model_folder


def write_fresh_model(model: str, seed: int, output: Path) -> None:
    """Write a folder with the model's configuration and tokenizer and weights that are drawn with ``seed``.

    Raises:
        UserError: if the model cannot be loaded or the folder cannot be written.
    """
    encoder, tokenizer = load_encoder(local_model_folder(model), untrained_seed=seed)
    try:
        tokenizer.save_pretrained(output)
        encoder.save_pretrained(output)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    try:
        write_fresh_model(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    except UserError as mistake:
        sys.exit(f"unibert: error: {mistake}")
