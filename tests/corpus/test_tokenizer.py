import json
import lzma
import unicodedata

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from tests.corpus.inputs import sentences
from unibert.corpus.fast_tokenizer import save_tokenizer
from unibert.corpus.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_tokenizer
from unibert.errors import UserError


@pytest.fixture(scope="module")
def model():
    return train_tokenizer(sentences(400), vocab_size=500)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(model, folder, model_max_length=64)
    return folder


@pytest.fixture(scope="module")
def tokenizers(folder):
    return AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)


def test_special_ids_and_bytes(folder):
    processor = load_tokenizer(folder)
    fast = AutoTokenizer.from_pretrained(folder)
    assert [processor.IdToPiece(n) for n in range(5)] == list(SPECIAL_TOKENS)
    assert fast.convert_ids_to_tokens(list(range(5))) == list(SPECIAL_TOKENS)
    ids = (fast.pad_token_id, fast.unk_token_id, fast.cls_token_id, fast.sep_token_id, fast.mask_token_id)
    assert ids == (0, 1, 2, 3, 4)
    assert (fast.bos_token_id, fast.eos_token_id, len(fast)) == (2, 3, 500)
    for token_ids in (processor.Encode("€𓀀"), fast("€𓀀", add_special_tokens=False).input_ids):
        assert [processor.IsByte(token) for token in token_ids].count(True) == 7  # 3 + 4 bytes of UTF-8
        assert processor.Decode(token_ids) == "€𓀀"
    assert min(processor.Encode("<mask></s>")) > 4  # text cannot forge special tokens


def test_training_is_deterministic_and_silent(model, capfd):
    assert train_tokenizer(sentences(400), vocab_size=500) == model
    assert capfd.readouterr() == ("", "")


def test_a_vocabulary_that_the_text_does_not_allow():
    with pytest.raises(UserError, match=r"vocab_size: 50000 pieces .* set it to (\d+) or less") as caught:
        train_tokenizer(sentences(50), vocab_size=50_000)
    largest = int(str(caught.value).split("set it to ")[1].split()[0])
    train_tokenizer(sentences(50), vocab_size=largest)
    with pytest.raises(UserError, match="vocab_size: 270 is too small"):
        train_tokenizer(sentences(50), vocab_size=270)
    with pytest.raises(UserError, match="vocab_size"):
        train_tokenizer([], vocab_size=500)


def test_long_lines_are_not_lost():
    # SentencePiece drops lines of more than max_sentence_length bytes; these letters are only in such lines
    spaced = " ".join(sentences(200, alphabet="αβγδεζηθικλ"))
    unspaced = "".join(sentences(200, alphabet="กขคงจฉชซญฎฐ")).replace(" ", "")
    processor = sentencepiece.SentencePieceProcessor(
        model_proto=train_tokenizer([*sentences(200), spaced, unspaced], vocab_size=600)
    )
    for word in (spaced.split()[3], unspaced[:5]):
        assert not any(processor.IsByte(token) for token in processor.Encode(word))


def test_lines_with_a_reserved_character_are_not_lost():
    """SentencePiece drops lines with its mark of an unknown character from its training text."""
    barred = [f"{line} ▁▂▃▄▅▆▇" for line in sentences(200, alphabet="αβγδεζηθικλ")]
    processor = sentencepiece.SentencePieceProcessor(
        model_proto=train_tokenizer([*sentences(200), *barred], vocab_size=600)
    )
    assert not any(processor.IsByte(token) for token in processor.Encode(barred[0].split()[3]))


def test_framing_and_mask(folder):
    fast = AutoTokenizer.from_pretrained(folder)
    word, other = sentences(1)[0].split()[:2]
    tokens = fast.convert_ids_to_tokens(fast(word, other).input_ids)
    assert (tokens[0], tokens[-1], tokens.count("</s>")) == ("<s>", "</s>", 2)
    assert list(fast(word)) == ["input_ids", "attention_mask"]
    of_word, of_both = (fast.convert_ids_to_tokens(fast(t).input_ids)[1:-1] for t in (word, f"{word} {other}."))
    for text, expected in (
        (f"{word} <mask>.", [*of_word, "<mask>", "."]),
        (f"<mask> {other}.", ["<mask>", *of_both[len(of_word) :]]),
    ):
        assert fast.convert_ids_to_tokens(fast(text).input_ids)[1:-1] == expected
    (mask,) = (
        t for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"] if t["content"] == "<mask>"
    )
    assert mask["lstrip"]
    assert not mask["rstrip"]
    assert fast.decode(fast(f"{word} {other}.").input_ids, skip_special_tokens=True) == f"{word} {other}."
    assert len(fast(" ".join(sentences(20)), truncation=True).input_ids) == 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  leading spaces ",
        "ﬁ ligature ①² Ａ",
        "tab\there",
        "a ▁ b",
        "\u3000全角　空白",
        "e\u0301 €",
        "a\nb",
        "a \u0085",
        " \u0085\u2003a\u3000",
    ],
)
def test_fast_tokenizer_normalises_as_sentencepiece_does(folder, text):
    fast = AutoTokenizer.from_pretrained(folder)
    assert fast(text, add_special_tokens=False).input_ids == load_tokenizer(folder).Encode(text)


VIETNAMESE = "Người dân ở Huế rất thích uống nước chè xanh"
MARKED = [
    VIETNAMESE,
    "한국어 문장입니다",
    "ガラスのビル、パン",
    "Ọ̀rọ̀ Yorùbá ń bẹ̀",
    "e\u0302\u0301 q\u0307\u0323 ệ Ǖ",
    "ड़ য় ଡ଼ କୋ",
]
"""Texts whose decomposed form has several marks on one letter, syllables in letters, or vowels in two parts."""


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
@pytest.mark.parametrize("text", MARKED)
def test_decomposed_text_is_that_which_it_stands_for(folder, text, form):
    fast, processor = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    decomposed = unicodedata.normalize(form, text)
    ids = fast(decomposed, add_special_tokens=False).input_ids
    assert ids == processor.Encode(decomposed)
    if text == VIETNAMESE:
        assert ids == processor.Encode(text)
    # SentencePiece leaves what has no composed letter as it is written.
    assert unicodedata.normalize("NFC", fast.decode(ids)) == unicodedata.normalize("NFC", text)


@given(
    st.lists(
        st.one_of(
            st.sampled_from("abenoru ệ가のक"),
            st.characters(categories=["Mn", "Mc", "Cf", "Cc", "Zs", "Lm", "No"]),
            st.sampled_from(["<mask>", "</s>", "<0x0A>", "<0xE2>", "<", "<unk>", "0x0A", "<0x"]),
            st.characters(exclude_categories=["Cs"]),
        ),
        max_size=12,
    ).map("".join)
)
def test_fast_tokenizer_agrees_with_sentencepiece_on_any_text(tokenizers, text):
    fast, processor = tokenizers
    ids = fast(text, add_special_tokens=False, split_special_tokens=True).input_ids
    # Ties between segmentations of equal score aside: then the pieces spell the same.
    assert ids == processor.Encode(text) or fast.decode(ids) == processor.Decode(processor.Encode(text))


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم کتاب\u200cهای تازه را به خانه\u200cی دوستم ببرم",
        "ಸಾಫ್ಟ್\u200cವೇರ್ ಮತ್ತು ಹಾರ್ಡ್\u200cವೇರ್",
        "क्\u200dष 👩\u200d🔬",
    ],
)
def test_zero_width_joiners_and_non_joiners_stay(folder, text):
    fast, processor = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    ids = processor.Encode(text)
    assert fast(text, add_special_tokens=False).input_ids == ids
    assert processor.Decode(ids) == fast.decode(ids) == text


def test_zero_width_non_joiners_are_within_words_and_pieces():
    words = "".join(sentences(200, alphabet="ابپتجخدرزسشکگلمنوهی")).replace(".", " ").split()
    lines = [" ".join(f"می\u200c{word}" for word in words[first : first + 20]) for first in range(0, len(words), 20)]
    processor = sentencepiece.SentencePieceProcessor(model_proto=train_tokenizer(lines, vocab_size=600))
    pieces = [piece for piece in processor.Encode(lines[0], out_type=str) if "\u200c" in piece]
    assert len(pieces) == 20
    assert all(piece.startswith("▁می\u200c") for piece in pieces)


def test_special_tokens_and_bytes_that_a_text_spells_out_are_text(folder):
    fast, processor = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in ("a </s> b <mask> c", "<pad><unk><s>", "write <0x0A> for a line feed", "<0x00><0xFF>"):
        for line in (text, f"€{text}𓀀"):  # beside bytes that stand for a character
            ids = fast(line, add_special_tokens=False, split_special_tokens=True).input_ids
            assert ids == processor.Encode(line)
            assert min(ids) >= len(SPECIAL_TOKENS)
            assert fast.decode(ids) == line
    assert fast("a </s> b <mask>", add_special_tokens=False).input_ids.count(3) == 1  # as ever without the option


def test_also_where_the_vocabulary_has_their_characters(tmp_path):
    lines = [f"{line} x < / > 0x0A 0123456789ABCDEF> <0xBC>" for line in sentences(200)]
    save_tokenizer(train_tokenizer(lines, vocab_size=600), tmp_path, model_max_length=64)
    fast, processor = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert not any(processor.IsByte(token) for token in processor.Encode("<0x0A></mask>"))
    for text in ("write <0x0A> or <0x1A>, <0xBC>", "</s><mask><s> <pad>€"):
        ids = fast(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ids == processor.Encode(text)
        assert min(ids) >= len(SPECIAL_TOKENS)


def test_models_trained_with_the_rules_of_before_serve_as_they_did(tmp_path):
    """Their rules make the zero-width non-joiner a space."""
    before = _with_rules(train_tokenizer(sentences(400), vocab_size=500), "nmt_nfkc")
    save_tokenizer(before, tmp_path, model_max_length=64)
    fast, processor = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    text = "می\u200cخواهم " + unicodedata.normalize("NFD", VIETNAMESE)
    ids = fast(text, add_special_tokens=False).input_ids
    assert ids == processor.Encode(text)
    assert fast.decode(ids) == f"می خواهم {VIETNAMESE}"


def _with_rules(model: bytes, name: str) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    rules = sentencepiece.SentencePieceNormalizer(rule_name=name).serialized_normalizer_spec()
    proto.normalizer_spec.CopyFrom(sentencepiece_model_pb2.NormalizerSpec.FromString(rules))
    return proto.SerializeToString()


def test_separate_words_are_segmented_as_in_a_sentence(folder):
    fast = AutoTokenizer.from_pretrained(folder)
    words = sentences(1)[0].split()
    assert fast(words, is_split_into_words=True).input_ids == fast(" ".join(words)).input_ids


def test_offsets_cover_the_words(folder):
    fast = AutoTokenizer.from_pretrained(folder)
    text = sentences(1)[0]
    encoded = fast(text, return_offsets_mapping=True, add_special_tokens=False)
    for (start, end), token in zip(encoded.offset_mapping, fast.convert_ids_to_tokens(encoded.input_ids), strict=True):
        assert text[start:end].strip() == token.lstrip("▁")


def test_models_of_another_kind_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer: .* cannot be read"):
        load_tokenizer(tmp_path / "none.model")
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path / "junk.model")
    bpe = {"model_type": "bpe", "pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}
    for name, options in (("ids", {}), ("bpe", bpe)):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences(100)),
            model_prefix=str(tmp_path / name),
            vocab_size=200,
            control_symbols=["<mask>"],
            minloglevel=2,
            **options,
        )
        with pytest.raises(UserError, match=r"the first pieces of|not a unigram model"):
            load_tokenizer(tmp_path / f"{name}.model")


def test_fast_tokenizer_agrees_with_sentencepiece_on_real_text(shared_data, tmp_path):
    lines = []
    for path in sorted((shared_data / "corpus").glob("*.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
            for _, record in zip(range(4), file, strict=False):
                lines += json.loads(record)["text"].split("\n")[:20]
    save_tokenizer(train_tokenizer(lines, vocab_size=8000), tmp_path, model_max_length=512)
    processor, fast = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for form in ("NFC", "NFD"):
        texts = [unicodedata.normalize(form, line) for line in lines]
        ids = fast(texts, add_special_tokens=False, truncation=False, verbose=False).input_ids
        differing = [line for line, found in zip(texts, ids, strict=True) if found != processor.Encode(line)]
        assert len(lines) > 2500
        assert len(differing) <= len(lines) / 1000, differing[:5]  # ties between segmentations of equal score
