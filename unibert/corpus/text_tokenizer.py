"""Plain text to token ids with the fast tokenizer of any model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from unibert.corpus.special_ids import SpecialIds
from unibert.corpus.trimming import is_byte
from unibert.errors import UserError

TOKENIZER_NAME = "tokenizer.json"
ROLES = ("pad_token", "mask_token", "unk_token", "cls_token", "sep_token", "bos_token", "eos_token")
NEVER_BEST_SCORE = -1e9
"""Unigram score of pieces that no text spells. One that spells "<0x0A>" is then segmented into other pieces."""
EncodedLines = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32]]
"""Token ids of a text, (T,), and the number of tokens of each of its lines, (lines,), which sum to T."""
_UNTYPABLE = "\ue000{}\ue000"
"""Spelling of a special token that no cleaned text contains: private-use characters are removed from text."""


class TextTokenizer:
    """Tokenizes plain text. A special token or byte that the text spells out, such as ``<mask>``, is ordinary text.

    Args:
        content: text of a ``tokenizer.json``.
        where: file or name of the tokenizer, for messages.

    Raises:
        UserError: if the tokenizer has no mask, padding or separator token.
    """

    def __init__(self, content: str, where: str, names: dict[str, str]) -> None:
        self.content = content
        framing = Tokenizer.from_str(content)
        vocabulary = framing.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        """One more than the largest id; a model may have more rows, which no text uses."""
        self.special_ids = _special_ids(framing, vocabulary, self.vocab_size, where, names)
        self.unknown_id = vocabulary.get(names.get("unk_token", ""))
        has_bytes = json.loads(content)["model"].get("byte_fallback", False)
        self.byte_ids = frozenset(id for piece, id in vocabulary.items() if has_bytes and is_byte(piece))
        self._plain = plain_tokenizer(content)

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """Load a folder with ``tokenizer.json`` and ``tokenizer_config.json``.

        Raises:
            UserError: if they are missing or cannot be read.
        """
        file = folder / TOKENIZER_NAME
        try:
            content = file.read_text(encoding="utf-8")
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            return cls(content, str(file), special_token_names(config))
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"tokenizer: {error.filename} cannot be read ({error.strerror})") from error
        except Exception as error:  # the library's errors have no type of their own
            raise UserError(f"tokenizer: {folder} holds no valid fast tokenizer ({error})") from error

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Token ids of each text, without the frame."""
        encoded = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def encode_lines(self, texts: Sequence[str]) -> list[EncodedLines]:
        """Token ids of each text, without the frame, and the number of tokens of each of its lines.

        A token belongs to the line of its last character, so that one which stands for a break and the word after it is
        the first of the new line.
        """
        encoded = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(one.ids, dtype=np.int32), _tokens_of_lines(text, one.offsets))
            for text, one in zip(texts, encoded, strict=True)
        ]


def _tokens_of_lines(text: str, offsets: list[tuple[int, int]]) -> npt.NDArray[np.uint32]:
    """Return the number of tokens of each line of a text, from the tokens' first and last characters in it."""
    breaks = np.array([match.start() for match in re.finditer("\n", text)], dtype=np.int64)
    ends = np.array(offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
    line = np.searchsorted(breaks, np.maximum.accumulate(ends) - 1)
    return np.bincount(line, minlength=len(breaks) + 1).astype(np.uint32)


def plain_tokenizer(content: str) -> Tokenizer:
    """Return a tokenizer with the ids of a ``tokenizer.json``, to which no text spells a special token.

    It adds no frame, and neither pads nor truncates.
    """
    plain = Tokenizer.from_str(json.dumps(_without_special_tokens(json.loads(content))))
    plain.no_truncation()
    plain.no_padding()
    return plain


def use_one_thread() -> None:
    """Keep the library from starting threads of its own, in a process that is one of several."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def special_token_names(config: dict[str, Any]) -> dict[str, str]:
    """Spelling of the special tokens by role, from the content of a ``tokenizer_config.json``."""
    named = {role: config[role] for role in ROLES if config.get(role) is not None}
    return {role: name["content"] if isinstance(name, dict) else str(name) for role, name in named.items()}


def _special_ids(
    framing: Tokenizer, vocabulary: dict[str, int], vocab_size: int, where: str, names: dict[str, str]
) -> SpecialIds:
    missing = [role for role in ("mask_token", "pad_token") if names.get(role) not in vocabulary]
    if missing:
        raise UserError(f"tokenizer: {where} has no {' and no '.join(missing)}, which pre-training needs")
    framed = framing.encode("a", add_special_tokens=True)
    inside = [place for place, special in enumerate(framed.special_tokens_mask) if not special]
    prefix, suffix = framed.ids[: inside[0]], framed.ids[inside[-1] + 1 :]
    if not prefix and not suffix:
        raise UserError(f"tokenizer: {where} adds no special tokens to a text, so that documents would have no end")
    special = {id for id, token in framing.get_added_tokens_decoder().items() if token.special}
    special |= {vocabulary[name] for name in names.values() if name in vocabulary}
    special |= {*prefix, *suffix} | (set(range(vocab_size)) - set(vocabulary.values()))
    return SpecialIds(
        pad=vocabulary[names["pad_token"]],
        mask=vocabulary[names["mask_token"]],
        prefix=tuple(prefix),
        suffix=tuple(suffix),
        special=tuple(sorted(special)),
    )


def _without_special_tokens(content: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer with special tokens that no text can spell; their ids stay taken."""
    special = {token["content"]: token["id"] for token in content["added_tokens"] if token["special"]}
    model = content["model"]
    if isinstance(model["vocab"], list):
        has_bytes = model.get("byte_fallback", False)
        model["vocab"] = [
            [_renamed(piece, special), NEVER_BEST_SCORE if has_bytes and is_byte(piece) else score]
            for piece, score in model["vocab"]
        ]
    else:
        model["vocab"] = {_renamed(piece, special): id for piece, id in model["vocab"].items()}
    if model.get("unk_token") is not None:
        model["unk_token"] = _renamed(model["unk_token"], special)
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
    content["post_processor"] = None
    return content


def _renamed(piece: str, special: dict[str, int]) -> str:
    return _UNTYPABLE.format(piece) if piece in special else piece
