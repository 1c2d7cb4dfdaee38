import json
import lzma

import pytest
import sentencepiece
from transformers import AutoTokenizer

from tests.corpus.inputs import sentences
from unibert.corpus.fast_tokenizer import save_tokenizer
from unibert.corpus.tokenizer import SPECIAL_TOKENS, encode, load_tokenizer, train_tokenizer
from unibert.errors import UserError


@pytest.fixture(scope="module")
def model():
    return train_tokenizer(sentences(400), vocab_size=500)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(model, folder, model_max_length=64)
    return folder


def test_special_ids_and_bytes(folder):
    processor = load_tokenizer(folder)
    fast = AutoTokenizer.from_pretrained(folder)
    assert [processor.IdToPiece(n) for n in range(5)] == list(SPECIAL_TOKENS)
    assert fast.convert_ids_to_tokens(list(range(5))) == list(SPECIAL_TOKENS)
    ids = (fast.pad_token_id, fast.unk_token_id, fast.cls_token_id, fast.sep_token_id, fast.mask_token_id)
    assert ids == (0, 1, 2, 3, 4)
    assert (fast.bos_token_id, fast.eos_token_id, len(fast)) == (2, 3, 500)
    for token_ids in (encode(processor, "€𓀀"), fast("€𓀀", add_special_tokens=False).input_ids):
        assert [processor.IsByte(token) for token in token_ids].count(True) == 7  # 3 + 4 bytes of UTF-8
        assert processor.Decode(token_ids) == "€𓀀"
    assert min(encode(processor, "<mask></s>")) > 4  # text cannot forge special tokens


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
    ],
)
def test_fast_tokenizer_normalises_as_sentencepiece_does(folder, text):
    fast = AutoTokenizer.from_pretrained(folder)
    assert fast(text, add_special_tokens=False).input_ids == load_tokenizer(folder).Encode(text)


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
    ids = fast(lines, add_special_tokens=False, truncation=False, verbose=False).input_ids
    differing = [line for line, found in zip(lines, ids, strict=True) if found != processor.Encode(line)]
    assert len(lines) > 2500
    assert len(differing) <= len(lines) / 1000, differing[:5]  # ties between segmentations of equal score
