"""The tokenizer of a corpus: UniBERT's own SentencePiece model, or the fast tokenizer of another model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from unibert.corpus.pretrained_tokenizer import PretrainedTokenizer
from unibert.corpus.special_ids import SpecialIds
from unibert.corpus.text_tokenizer import TOKENIZER_NAME, EncodedLines, TextTokenizer
from unibert.corpus.tokenizer import MODEL_NAME, OwnTokenizer, load_tokenizer


class DocumentTokenizer(Protocol):
    """Turns plain text into token ids."""

    vocab_size: int
    special_ids: SpecialIds
    unknown_id: int | None
    """Id of what no piece stands for; None if there is no such id."""
    byte_ids: frozenset[int]
    """Ids of single bytes, in which unknown characters are spelt; empty if they are not."""

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return the token ids of each text, without special tokens."""

    def encode_lines(self, texts: Sequence[str]) -> list[EncodedLines]:
        """Return the same ids of each text, and the number of tokens of each of its lines."""


def find_tokenizer(name: str) -> bytes | PretrainedTokenizer:
    """Return the tokenizer that ``--tokenizer`` means.

    Args:
        name: a corpus folder, a folder with a tokenizer, a SentencePiece model that UniBERT trained, or a hub id.

    Returns:
        The serialised SentencePiece model, or a fast tokenizer.

    Raises:
        UserError: if there is no such tokenizer, or it cannot serve.
    """
    path = Path(name)
    folders = (path, path / "tokenizer")
    if path.is_file() or any((folder / MODEL_NAME).is_file() for folder in folders):
        return bytes(load_tokenizer(path).serialized_model_proto())
    folder = next((str(folder) for folder in folders if (folder / TOKENIZER_NAME).is_file()), name)
    tokenizer = PretrainedTokenizer.load(folder)
    tokenizer.text_tokenizer()
    return tokenizer


@lru_cache(maxsize=1)
def corpus_tokenizer(folder: Path, digest: str) -> DocumentTokenizer:
    """Load the tokenizer in a corpus's ``tokenizer`` folder. ``digest`` tells it from one that it has replaced."""
    if (folder / MODEL_NAME).is_file():
        return OwnTokenizer(folder / MODEL_NAME)
    return TextTokenizer.load(folder)
