"""Training and loading of the SentencePiece unigram model."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from unibert.corpus.normalization_rules import training_rules
from unibert.corpus.special_ids import OWN_SPECIAL_IDS
from unibert.corpus.text_tokenizer import EncodedLines
from unibert.errors import UserError

SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
"""Special tokens; the position of each is its id."""
MODEL_NAME = "sentencepiece.model"

_MAX_LINE_BYTES = 4096
_RESERVED = "\u2585"  # ▅: SentencePiece would silently drop lines with it
_NUM_THREADS = 16  # fixed: the last digits of the EM training's sums, and so the vocabulary, depend on it


def train_tokenizer(lines: Iterable[str], *, vocab_size: int, character_coverage: float = 0.99999) -> bytes:
    """Train a unigram model (Kudo 2018, arXiv 1804.10959) with byte fallback; the same lines give the same bytes.

    Args:
        lines: training text. Long lines are cut at spaces, since SentencePiece would silently drop them.
        vocab_size: number of pieces, including the special tokens and the 256 bytes.
        character_coverage: share of the characters that get a piece; the others are spelt in bytes.

    Returns:
        The serialised SentencePiece model.

    Raises:
        UserError: if the text is too small, or has too many different characters, for ``vocab_size``.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_bounded_lines(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            max_sentence_length=_MAX_LINE_BYTES,
            normalizer=training_rules(),
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece="<pad>",
            unk_piece="<unk>",
            bos_piece="<s>",
            eos_piece="</s>",
            control_symbols=["<mask>"],
            train_extremely_large_corpus=True,
            num_threads=_NUM_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_training_failure(str(error), vocab_size)) from error
    return model.getvalue()


def _training_failure(message: str, vocab_size: int) -> str:
    if largest := re.search(r"value <= (\d+)", message):
        return f"vocab_size: {vocab_size} pieces are more than the text allows; set it to {largest[1]} or less"
    if required := re.search(r"required_chars\.? *(\d+) vs (\d+)", message):
        return (
            f"vocab_size: {vocab_size} is too small for the characters of the text; "
            f"set it above {required[2]} or lower character_coverage"
        )
    return f"vocab_size: SentencePiece could not train {vocab_size} pieces on this text ({message.strip()})"


def _bounded_lines(lines: Iterable[str]) -> Iterator[str]:
    """Cut lines at ``_RESERVED``, and into pieces of at most ``_MAX_LINE_BYTES`` bytes, at a space if there is one."""
    for line in chain.from_iterable(line.split(_RESERVED) for line in lines):
        while len(line.encode()) > _MAX_LINE_BYTES:
            head = line.encode()[:_MAX_LINE_BYTES].decode(errors="ignore")
            cut = head.rfind(" ") + 1 or len(head)
            yield line[:cut]
            line = line[cut:]
        yield line


def load_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Load a SentencePiece model: its file, or a folder with ``sentencepiece.model`` such as a corpus's tokenizer.

    Raises:
        UserError: if the file cannot be read, is not a unigram model, or begins with other special tokens.
    """
    file = next((file for file in (path / MODEL_NAME, path / "tokenizer" / MODEL_NAME) if file.is_file()), path)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(file.read_bytes())
    except OSError as error:
        raise UserError(f"tokenizer: {file} cannot be read ({error.strerror}); name a SentencePiece model") from error
    except RuntimeError as error:
        raise UserError(f"tokenizer: {file} is not a SentencePiece model") from error
    first = [processor.IdToPiece(index) for index in range(min(len(SPECIAL_TOKENS), processor.GetPieceSize()))]
    if first != list(SPECIAL_TOKENS):
        raise UserError(f"tokenizer: the first pieces of {file} are {first}, not {list(SPECIAL_TOKENS)}")
    proto = sentencepiece_model_pb2.ModelProto.FromString(processor.serialized_model_proto())  # type: ignore[attr-defined]
    spec = proto.trainer_spec
    if spec.model_type != spec.UNIGRAM:
        raise UserError(f"tokenizer: {file} is not a unigram model; only those convert to an equal fast tokenizer")
    return processor


class OwnTokenizer:
    """Tokenizes plain text with a SentencePiece model that UniBERT trained."""

    special_ids = OWN_SPECIAL_IDS

    def __init__(self, path: Path) -> None:
        self._processor = load_tokenizer(path)
        self.vocab_size: int = self._processor.GetPieceSize()
        self.unknown_id: int | None = self._processor.unk_id()
        self.byte_ids = frozenset(filter(self._processor.IsByte, range(self.vocab_size)))

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return the token ids of each text, without special tokens."""
        return [tokens for tokens, _ in self.encode_lines(texts)]

    def encode_lines(self, texts: Sequence[str]) -> list[EncodedLines]:
        """Return the token ids of each text, without special tokens, and the number of tokens of each of its lines."""
        if not texts:
            return []
        # A line break is a space to SentencePiece. One call for all lines, since each call takes as long as some lines.
        encoded = self._processor.Encode("\n".join(texts).split("\n"), return_type="numpy", num_threads=1)
        tokens, lengths = np.concatenate(encoded), np.fromiter(map(len, encoded), np.uint32, len(encoded))
        lines = np.cumsum([0, *(text.count("\n") + 1 for text in texts)])
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[lines]
        return [
            (tokens[first:last], lengths[first_line:last_line])
            for (first, last), (first_line, last_line) in zip(
                pairwise(ends.tolist()), pairwise(lines.tolist()), strict=True
            )
        ]
