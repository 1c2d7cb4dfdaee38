"""A trimmed tokenizer segments alike what uses kept pieces only, and is an ordinary tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.corpus import fast_tokenizers
from unibert.corpus.text_tokenizer import TextTokenizer
from unibert.corpus.trimming import trim
from unibert.demo import alignment
from unibert.errors import UserError

VOCAB_SIZE = 3000


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """In languages of the demo that are written in alphabets, so that most pieces are not single characters."""
    aligned = alignment.aligned_sentences()
    return [line for code in ("de", "el", "en", "es", "fr", "ru", "tr", "uk") for line in aligned[code]]


@pytest.fixture(scope="module", params=fast_tokenizers.KINDS)
def folder(request, lines, tmp_path_factory) -> Path:
    return fast_tokenizers.train(request.param, lines, VOCAB_SIZE, tmp_path_factory.mktemp(request.param))


def count(tokenizer: TextTokenizer, lines: list[str]) -> np.ndarray:
    return np.bincount(np.concatenate(tokenizer.encode_batch(lines)), minlength=tokenizer.vocab_size).astype(float)


def trimmed_copy(folder: Path, target: Path, counts: np.ndarray, vocab_size: int) -> tuple[TextTokenizer, np.ndarray]:
    tokenizer = TextTokenizer.load(folder)
    content, source_ids = trim(tokenizer.content, counts, vocab_size, tokenizer.special_ids.special)
    target.mkdir()
    (target / "tokenizer.json").write_text(content)
    (target / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    return TextTokenizer.load(target), source_ids


def test_what_uses_kept_pieces_only_is_segmented_alike(folder, lines, tmp_path):
    tokenizer = TextTokenizer.load(folder)
    # Pieces of half the lines, so that others of the lines need pieces that go.
    counts = count(tokenizer, lines[: len(lines) // 2])
    trimmed, source_ids = trimmed_copy(folder, tmp_path / "trimmed", counts, VOCAB_SIZE)
    assert trimmed.vocab_size == len(source_ids) < tokenizer.vocab_size
    alike = 0
    for before, after in zip(tokenizer.encode_batch(lines), trimmed.encode_batch(lines), strict=True):
        if np.isin(before, source_ids).all():
            assert source_ids[after].tolist() == before.tolist()
            alike += 1
        else:
            assert len(after) >= len(before)
    assert len(lines) // 2 <= alike < len(lines)


def test_no_more_pieces_are_kept_than_asked_for(folder, lines, tmp_path):
    tokenizer = TextTokenizer.load(folder)
    counts = count(tokenizer, lines)
    trimmed, source_ids = trimmed_copy(folder, tmp_path / "trimmed", counts, 1800)
    assert 1700 < trimmed.vocab_size <= 1800
    assert (np.diff(source_ids) > 0).all()
    # Every line can still be read back.
    loaded = AutoTokenizer.from_pretrained(tmp_path / "trimmed")
    original = AutoTokenizer.from_pretrained(folder)
    for line, ids in list(zip(lines, trimmed.encode_batch(lines), strict=True))[::50]:
        expected = original.decode(original(line, add_special_tokens=False).input_ids)
        assert loaded.decode(ids.tolist()) == expected
        assert loaded(line, add_special_tokens=False).input_ids == ids.tolist()


def test_special_tokens_keep_their_roles(folder, lines, tmp_path):
    tokenizer = TextTokenizer.load(folder)
    trimmed, source_ids = trimmed_copy(folder, tmp_path / "trimmed", count(tokenizer, lines), 1800)
    before, after = tokenizer.special_ids, trimmed.special_ids
    assert (source_ids[after.pad], source_ids[after.mask]) == (before.pad, before.mask)
    for role in ("prefix", "suffix", "special"):
        assert tuple(source_ids[list(getattr(after, role))].tolist()) == getattr(before, role)
    framed = AutoTokenizer.from_pretrained(tmp_path / "trimmed")("a", "b").input_ids
    assert source_ids[framed].tolist() == AutoTokenizer.from_pretrained(folder)("a", "b").input_ids


def test_pieces_with_the_highest_counts_are_kept(folder, lines):
    tokenizer = TextTokenizer.load(folder)
    counts = count(tokenizer, lines)
    _, source_ids = trim(tokenizer.content, counts, 1800, tokenizer.special_ids.special)
    most_used = np.argsort(-counts, kind="stable")[:300]
    assert np.isin(most_used, source_ids).all()


def test_bytes_and_characters_always_stay(folder, lines):
    tokenizer = TextTokenizer.load(folder)
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    _, source_ids = trim(tokenizer.content, np.zeros(tokenizer.vocab_size), VOCAB_SIZE, tokenizer.special_ids.special)
    indivisible = [id for piece, id in vocabulary.items() if len(piece.removeprefix("##")) == 1]
    assert np.isin(indivisible, source_ids).all()
    assert len(source_ids) < VOCAB_SIZE / 2


def test_room_for_characters_alone_is_too_little(folder):
    tokenizer = TextTokenizer.load(folder)
    with pytest.raises(UserError, match="trim_vocabulary: 20 is too small; special tokens, bytes and single"):
        trim(tokenizer.content, np.ones(tokenizer.vocab_size), 20, tokenizer.special_ids.special)


def test_other_algorithms_are_refused(folder):
    content = json.loads(TextTokenizer.load(folder).content)
    content["model"]["type"] = "WordLevel"
    with pytest.raises(UserError, match="WordLevel tokenizers cannot be trimmed"):
        trim(json.dumps(content), np.ones(9), 9, ())
