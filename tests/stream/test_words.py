"""Words are masked whole."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unibert.corpus.special_ids import OWN_SPECIAL_IDS
from unibert.corpus.tokenizer import load_tokenizer, train_tokenizer
from unibert.errors import UserError
from unibert.schedules import Timeline
from unibert.stream import Stream, StreamConfig
from unibert.stream.masking import mask
from unibert.stream.randomness import Purpose
from unibert.stream.sequences import MaskedSequences, Sequences
from unibert.stream.vocabulary import Vocabulary
from unibert.stream.words import word_starts

# Every third ordinary piece begins a word.
STARTS = np.array([True] * 5 + [True, False, False] * 100)
VOCAB_SIZE = len(STARTS)
VOCABULARY = Vocabulary(VOCAB_SIZE, OWN_SPECIAL_IDS)

PIECES = 340


def masked(ids: np.ndarray, rate: float, starts: np.ndarray | None = STARTS) -> MaskedSequences:
    sequences = Sequences(
        input_ids=ids.astype(np.int32),
        documents_per_sequence=np.ones(len(ids), np.int64),
        document_lengths=np.full(len(ids), ids.shape[1]),
        document_languages=np.zeros(len(ids), np.int64),
        origins=["x"] * len(ids),
    )
    return mask(
        sequences,
        seed=3,
        purpose=Purpose.MASKING,
        first_sequence=0,
        rate=rate,
        mask_share=0.8,
        random_share=0.1,
        vocabulary=VOCABULARY,
        word_starts=starts,
    )


def random_ids(num_sequences: int = 2000, length: int = 64) -> np.ndarray:
    ids = np.random.default_rng(0).integers(5, VOCAB_SIZE, (num_sequences, length))
    ids[:, 0], ids[:, 20], ids[:, 21], ids[:, -1] = 2, 3, 2, 3
    return ids


def test_all_pieces_of_a_word_or_none() -> None:
    ids = random_ids()
    chosen = masked(ids, 0.3).labels != -100
    ordinary = ids >= 5
    continues = ordinary[:, 1:] & ordinary[:, :-1] & ~STARTS[ids[:, 1:]]
    assert (chosen[:, 1:] == chosen[:, :-1])[continues].all()
    # Independent words: the pieces before and after a boundary agree as often as two draws at 0.3 do, 0.58.
    apart = ordinary[:, 1:] & ordinary[:, :-1] & STARTS[ids[:, 1:]]
    assert (chosen[:, 1:] == chosen[:, :-1])[apart].mean() == pytest.approx(0.58, abs=0.02)
    # Across </s> <s> a piece that continues a word begins one: its document was cut there.
    assert (chosen[:, 22] == chosen[:, 19])[~STARTS[ids[:, 22]]].mean() == pytest.approx(0.58, abs=0.07)


def test_the_rate_is_of_tokens_and_the_shares_are_per_token() -> None:
    ids = random_ids(4000)
    result = masked(ids, 0.3)
    chosen = result.labels != -100
    # About 80,000 words of 3 tokens on average: five standard deviations of the tokens' share are below 0.012.
    assert chosen[ids >= 5].mean() == pytest.approx(0.3, abs=0.012)
    assert not chosen[ids < 5].any()
    assert (result.input_ids[chosen] == 4).mean() == pytest.approx(0.8, abs=0.015)


def test_a_sequence_without_any_mask_gets_one_word() -> None:
    ids = random_ids(200, 30)
    chosen = masked(ids, 1e-9).labels != -100
    for sequence, picked in zip(ids, chosen, strict=True):
        (positions,) = np.nonzero(picked)
        assert len(positions) >= 1
        assert (np.diff(positions) == 1).all(), "more than one range"
        assert not STARTS[sequence[positions[1:]]].any(), "more than one word"
        after = positions[-1] + 1
        assert sequence[after] < 5 or STARTS[sequence[after]], "a word without its end"


def test_words_of_one_piece_give_plain_masking() -> None:
    ids = random_ids(50)
    every = np.ones(VOCAB_SIZE, bool)
    assert (masked(ids, 0.3, every).labels == masked(ids, 0.3, None).labels).all()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus folder with a tokenizer for text with and without spaces."""
    corpus = tmp_path_factory.mktemp("words") / "corpus"
    (corpus / "tokenizer").mkdir(parents=True)
    lines = [
        "the bakers were baking and the readers were reading; nobody minded, nobody reminded them",
        "unbelievable rebuilding of buildings, builders and bakers: believable?",
        "猫が水を飲む。犬も水を飲む。鳥は空を飛ぶ。",
        "แมวดื่มน้ำและสุนัขดื่มน้ำ",
        "кошки пьют воду и собаки пьют воду, читатели читают",
    ] * 40
    model = train_tokenizer(lines, vocab_size=PIECES, character_coverage=1.0)
    (corpus / "tokenizer" / "sentencepiece.model").write_bytes(model)
    return corpus


def split_into_words(corpus: Path, text: str) -> list[str]:
    processor = load_tokenizer(corpus)
    starts = word_starts(corpus, PIECES)
    assert starts.shape == (PIECES,)
    words: list[str] = []
    for token in processor.Encode(text):
        piece = processor.id_to_piece(token).replace("▁", " ")
        if starts[token] or not words:
            words.append(piece)
        else:
            words[-1] += piece
    return words


def test_words_of_scripts_with_spaces(tokenizer: Path) -> None:
    words = split_into_words(tokenizer, "the bakers rebuilding, кошки читают")
    assert [word.strip() for word in words] == ["the", "bakers", "rebuilding", ",", "кошки", "читают"]


def test_scripts_without_spaces_begin_a_word_at_every_piece(tokenizer: Path) -> None:
    for text in ("猫が水を飲む", "แมวดื่มน้ำ"):
        pieces = load_tokenizer(tokenizer).Encode(text)
        assert len(pieces) > 1
        assert word_starts(tokenizer, PIECES)[pieces].all()


def test_a_character_in_bytes_is_one_word(tokenizer: Path) -> None:
    assert split_into_words(tokenizer, "bakers𐎠")[-1] == "<0xF0><0x90><0x8E><0xA0>"


def test_the_stream_masks_whole_words(make_corpus: Callable[..., Path], tokenizer: Path) -> None:
    corpus = make_corpus({"da": 60}, vocab_size=PIECES)
    config = StreamConfig(lanes=1, whole_words=True)
    timeline = Timeline(64 * 64, 64, 64)
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read"):
        Stream(corpus, config, seed=0, timeline=timeline)
    (corpus / "tokenizer").symlink_to(tokenizer / "tokenizer")
    sequences = next(Stream(corpus, config, seed=0, timeline=timeline).steps()).sequences
    chosen = sequences.labels != -100
    ids = np.where(chosen, sequences.labels, sequences.input_ids)
    inside = ~word_starts(corpus, PIECES)[ids[:, 1:]] & (ids[:, 1:] >= 5) & (ids[:, :-1] >= 5)
    assert inside.sum() > 100
    assert (chosen[:, 1:] == chosen[:, :-1])[inside].all()


def test_a_tokenizer_of_another_corpus_is_refused(make_corpus: Callable[..., Path], tokenizer: Path) -> None:
    corpus = make_corpus({"da": 60})
    (corpus / "tokenizer").symlink_to(tokenizer / "tokenizer")
    with pytest.raises(UserError, match=r"tokenizer: has 340 pieces, the corpus 1000"):
        Stream(corpus, StreamConfig(lanes=1, whole_words=True), seed=0, timeline=Timeline(4096, 64, 64))
