"""The tokenizer of another model, as a corpus uses it: whole, or trimmed to the pieces that the corpus uses most."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from unibert.corpus.text_tokenizer import TOKENIZER_NAME, TextTokenizer, special_token_names
from unibert.corpus.trimming import trim
from unibert.errors import UserError
from unibert.files import write_atomically, write_json

SOURCE_NAME, SOURCE_IDS_NAME = "source.json", "source_ids.npy"
_CONFIG_NAME = "tokenizer_config.json"


@dataclass(frozen=True)
class PretrainedTokenizer:
    """A fast tokenizer and where it comes from."""

    name: str
    """Folder or hub id."""
    content: str
    """Text of its ``tokenizer.json``."""
    config: dict[str, Any]
    """Content of its ``tokenizer_config.json``."""

    @classmethod
    def load(cls, name: str) -> PretrainedTokenizer:
        """Load a tokenizer from a folder or the Hugging Face hub.

        Raises:
            UserError: if it cannot be found or loaded, or is not a fast tokenizer.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # transformers raises whatever its parts raise
            raise UserError(
                f"tokenizer: {name} is neither a folder with a tokenizer nor a model that the Hugging Face hub gives "
                f"({_first_line(error)})"
            ) from error
        if not tokenizer.is_fast:
            raise UserError(f"tokenizer: {name} has a slow tokenizer only; convert it to a fast one (tokenizer.json)")
        roles = ("pad_token", "mask_token", "unk_token", "cls_token", "sep_token", "bos_token", "eos_token")
        config: dict[str, Any] = {role: str(token) for role in roles if (token := getattr(tokenizer, role)) is not None}
        config |= {
            # The one class that transformers 4 and 5 both have for a bare tokenizer.json.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        }
        return cls(name, tokenizer.backend_tokenizer.to_str(), config)

    def text_tokenizer(self) -> TextTokenizer:
        """Return the tokenizer of plain text. Raises UserError if a mask, padding or frame is missing."""
        return TextTokenizer(self.content, self.name, special_token_names(self.config))

    @property
    def segmentation(self) -> str:
        """SHA-256 (hex) of all that decides how a text is segmented, and of the ids."""
        content = json.loads(Tokenizer.from_str(self.content).to_str())
        parts = [content[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path, *, model_max_length: int, source_ids: npt.NDArray[np.int64] | None = None) -> None:
        """Write a folder that ``AutoTokenizer`` loads, and the tokenizer's origin beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TOKENIZER_NAME, self.content)
        write_json(folder / _CONFIG_NAME, self.config | {"model_max_length": model_max_length})
        write_json(folder / SOURCE_NAME, {"name": self.name, "segmentation": self.segmentation})
        if source_ids is not None:
            np.save(folder / SOURCE_IDS_NAME, source_ids)
