"""The tokenizer of another model, whole or trimmed to the pieces that a corpus uses most."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from unibert.corpus.text_tokenizer import ROLES, TOKENIZER_NAME, TextTokenizer, special_token_names
from unibert.corpus.trimming import trim
from unibert.errors import UserError, short_message
from unibert.files import write_atomically, write_json
from unibert.hub import is_on_hub, not_found

Ids = npt.NDArray[np.int64]

_CONFIG_NAME, _ORIGIN_NAME, _SOURCE_IDS_NAME = "tokenizer_config.json", "source.json", "source_ids.npy"


@dataclass(frozen=True)
class Origin:
    """The tokenizer that a corpus's tokenizer was made from, in ``source.json`` beside it."""

    name: str
    """Folder or hub id."""
    segmentation: str
    """SHA-256 (hex) of all that decides how it segments a text and numbers the pieces."""
    source_ids: Ids | None = None
    """Its id of each id, (V,), if the tokenizer was trimmed."""

    @classmethod
    def load(cls, folder: Path) -> Origin | None:
        """Read it from a tokenizer's folder; None if the tokenizer was made from no other."""
        if not (folder / _ORIGIN_NAME).is_file():
            return None
        content = json.loads((folder / _ORIGIN_NAME).read_text(encoding="utf-8"))
        ids = folder / _SOURCE_IDS_NAME
        return cls(**content, source_ids=np.load(ids, allow_pickle=False) if ids.is_file() else None)

    def save(self, folder: Path) -> None:
        """Write it into a tokenizer's folder."""
        write_json(folder / _ORIGIN_NAME, {"name": self.name, "segmentation": self.segmentation})
        if self.source_ids is not None:
            np.save(folder / _SOURCE_IDS_NAME, self.source_ids)


@dataclass(frozen=True)
class PretrainedTokenizer:
    """A fast tokenizer with its settings and its origin."""

    content: str
    """Text of ``tokenizer.json``."""
    config: dict[str, Any]
    """Content of ``tokenizer_config.json``."""
    origin: Origin

    @classmethod
    def load(cls, name: str, key: str = "tokenizer") -> Self:
        """Load a tokenizer from a folder or the Hugging Face hub; ``key`` is the option to name in errors.

        Raises:
            UserError: if it cannot be found or loaded, or is not a fast tokenizer.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # transformers passes on whatever its parts raise
            reason = short_message(error)
            problem = not_found(name, reason) if is_on_hub(name) else f"{name} has no tokenizer ({reason})"
            raise UserError(f"{key}: {problem}") from error
        if not tokenizer.is_fast:
            raise UserError(f"{key}: {name} has only a slow tokenizer; convert it to a fast one (tokenizer.json)")
        content = tokenizer.backend_tokenizer.to_str()
        config: dict[str, Any] = {role: str(token) for role in ROLES if (token := getattr(tokenizer, role)) is not None}
        config |= {
            # The one class that transformers 4 and 5 both have for a tokenizer.json alone.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        }
        origin = Origin.load(Path(name)) or Origin(name, segmentation_digest(content))
        return cls(content, config, origin)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(Tokenizer.from_str(self.content).get_vocab(with_added_tokens=True).values()) + 1

    def text_tokenizer(self) -> TextTokenizer:
        """Return the tokenizer of plain text. Raises UserError if a mask, padding or frame is missing."""
        return TextTokenizer(self.content, self.origin.name, special_token_names(self.config))

    def trimmed(self, counts: npt.NDArray[np.float64], vocab_size: int) -> Self:
        """Return the tokenizer with only the pieces that have the highest ``counts``, (V,).

        Raises:
            UserError: if ``vocab_size`` is too small, or the tokenizer's algorithm cannot be trimmed.
        """
        content, kept = trim(self.content, counts, vocab_size, self.text_tokenizer().special_ids.special)
        before = self.origin.source_ids
        return replace(
            self, content=content, origin=replace(self.origin, source_ids=kept if before is None else before[kept])
        )

    def save(self, folder: Path, *, model_max_length: int) -> None:
        """Write a folder that ``AutoTokenizer`` loads."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TOKENIZER_NAME, self.content)
        write_json(folder / _CONFIG_NAME, self.config | {"model_max_length": model_max_length})
        self.origin.save(folder)


def segmentation_digest(content: str) -> str:
    """Return the SHA-256 (hex) of the parts of a ``tokenizer.json`` that decide the ids of a text."""
    parsed = json.loads(Tokenizer.from_str(content).to_str())
    parts = [parsed[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
