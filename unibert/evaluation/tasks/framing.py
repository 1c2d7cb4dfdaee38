"""Texts and pairs of texts to token ids with the model's frame, cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tokenizers import Encoding

from unibert.corpus.text_tokenizer import plain_tokenizer
from unibert.errors import UserError


class Framing:
    """Frames texts with the special tokens of a model. A special token that a text spells out is ordinary text.

    Args:
        tokenizer: transformers' fast tokenizer of the model.
        max_length: maximum number of tokens of a row, with the frame.

    Raises:
        UserError: if the tokenizer is not a fast one, which knows where in the text its tokens are.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"{tokenizer.name_or_path}: fine-tuning needs the places of tokens in the text, which a slow tokenizer "
                "does not tell; add its tokenizer.json"
            )
        self.pad_id: int = tokenizer.pad_token_id
        self.has_type_ids = "token_type_ids" in tokenizer.model_input_names
        self.max_length = min(max_length, tokenizer.model_max_length)
        self._framing: Any = tokenizer.backend_tokenizer
        self._framing.no_padding()
        self._plain = plain_tokenizer(self._framing.to_str())

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Return the tokens of each text without frame, at full length."""
        return self._plain.encode_batch(list(texts), add_special_tokens=False)

    def windows(
        self,
        first: Encoding,
        second: Encoding | None = None,
        *,
        cut: Literal["longest_first", "only_second"] = "longest_first",
        stride: int = 0,
    ) -> list[Encoding]:
        """Frame a text or a pair, in as many windows as it needs.

        Args:
            first: of `encode`.
            second: of `encode`.
            cut: which text of a pair is cut.
            stride: number of tokens that a window shares with the one before.
        """
        self._framing.enable_truncation(self.max_length, stride=stride, strategy=cut)
        framed = self._framing.post_process(first, second)
        return [framed, *framed.overflowing]
