"""Which pieces of the vocabulary begin a word, so that whole words can be masked."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from unibert.corpus.tokenizer import MODEL_NAME, load_tokenizer
from unibert.errors import UserError

_SPACE = "▁"
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
"""The byte that a character of a byte-level piece stands for."""
_CONTINUATION_BYTES = range(0x80, 0xC0)
_UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "YI", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts without spaces between words, as Unicode's character names begin."""


def word_starts(corpus_dir: Path, vocab_size: int) -> npt.NDArray[np.bool_]:
    """Return whether each piece of the corpus's tokenizer begins a word, (V,) bool.

    A word begins after a space, at a piece without letters or digits (punctuation), and, in scripts without spaces
    between words, at every piece. A character spelt in bytes begins at its first byte.

    Raises:
        UserError: if the tokenizer cannot be loaded or does not have ``vocab_size`` pieces.
    """
    folder = corpus_dir / "tokenizer"
    spellings = _own_spellings(folder / MODEL_NAME) if (folder / MODEL_NAME).is_file() else _fast_spellings(folder)
    if len(spellings) != vocab_size:
        raise UserError(
            f"{folder}: has {len(spellings)} pieces, the corpus {vocab_size}; restore the corpus's own tokenizer"
        )
    return np.array([_begins_word(piece) for piece in spellings])


def _own_spellings(path: Path) -> list[str]:
    processor = load_tokenizer(path)
    return [processor.id_to_piece(index) for index in range(processor.get_piece_size())]


def _fast_spellings(folder: Path) -> list[str]:
    """Pieces of a fast tokenizer, spelt as SentencePiece spells them: ▁ for a space, <0xC3> for a lone byte."""
    path = folder / "tokenizer.json"
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore the corpus's own tokenizer") from error
    tokenizer, model = Tokenizer.from_str(content), json.loads(content)["model"]
    ids = tokenizer.get_vocab(with_added_tokens=True)
    respell = _respelling(model, is_byte_level="ByteLevel" in json.dumps(json.loads(content)["decoder"]))
    pieces = {index: respell(piece) for piece, index in ids.items()}
    return [pieces.get(index, "") for index in range(max(pieces) + 1)]


def _respelling(model: dict[str, Any], *, is_byte_level: bool) -> Callable[[str], str]:
    if is_byte_level:
        return _spell_bytes
    prefix = model.get("continuing_subword_prefix")
    if model["type"] == "WordPiece" and prefix:
        return lambda piece: piece.removeprefix(prefix) if piece.startswith(prefix) else f"{_SPACE}{piece}"
    return lambda piece: piece


def _spell_bytes(piece: str) -> str:
    """Spell a byte-level piece, in which each character stands for a byte."""
    if any(character not in _BYTES for character in piece):
        return piece
    content = bytes(_BYTES[character] for character in piece)
    text = content.decode(errors="ignore")
    if not text or content[0] in _CONTINUATION_BYTES:
        return f"<0x{content[0]:02X}>"
    return _SPACE + text[1:] if text[0] == " " else text


def _begins_word(piece: str) -> bool:
    if piece.startswith("<0x") and len(piece) == 6:
        return int(piece[3:5], 16) not in _CONTINUATION_BYTES
    letters = [character for character in piece if unicodedata.category(character)[0] in "LMN"]
    return piece.startswith(_SPACE) or not letters or unicodedata.name(letters[0], "").startswith(_UNSPACED_SCRIPTS)
