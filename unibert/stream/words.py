"""Which pieces of the vocabulary begin a word, so that whole words can be masked."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unibert.corpus.tokenizer import MODEL_NAME, load_tokenizer
from unibert.errors import UserError

_SPACE = "▁"
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
    path = corpus_dir / "tokenizer" / MODEL_NAME
    processor = load_tokenizer(path)
    if (size := processor.get_piece_size()) != vocab_size:
        raise UserError(f"{path}: has {size} pieces, the corpus {vocab_size}; restore the corpus's own tokenizer")
    return np.array([_begins_word(processor.id_to_piece(index)) for index in range(size)])


def _begins_word(piece: str) -> bool:
    if piece.startswith("<0x") and len(piece) == 6:
        return int(piece[3:5], 16) not in _CONTINUATION_BYTES
    letters = [character for character in piece if unicodedata.category(character)[0] in "LMN"]
    return piece.startswith(_SPACE) or not letters or unicodedata.name(letters[0], "").startswith(_UNSPACED_SCRIPTS)
