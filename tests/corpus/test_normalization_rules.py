"""A fast tokenizer's normalizer gives SentencePiece's result for any text."""

import unicodedata
from functools import cache

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers.normalizers import Normalizer

from unibert.corpus.normalization_rules import normalizer, training_rules
from unibert.errors import UserError

BEFORE = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
"""The rules of models that UniBERT trained before it kept the zero-width non-joiner."""
JOINERS = "\u200c\u200d"
MARKS = "".join(c for c in map(chr, range(0x11000)) if unicodedata.category(c) in ("Mn", "Mc", "Me"))
JAMO = "".join(map(chr, [*range(0x1100, 0x1200), *range(0x3130, 0x3190), *range(0xFFA0, 0xFFDD)]))
KANA = "".join(map(chr, [*range(0x3041, 0x3100), *range(0xFF65, 0xFFA0)]))
INDIC = "".join(map(chr, [*range(0x900, 0xE00)]))
COMPATIBILITY = "ﬁ①²Ａ｢½ŉǆㇰ㍿㋿～￣´΅ªſʰ\ua7f1\ua7f2\U0001e030\U0001ccd6\U0001d400\u2126\u212b\ufb31\ufe77\uf900"
EMOJI = "👩👨🏽\U0001f1e6\U0001f1f6❤\ufe0f\u20e3#🏴\U000e0067\U000e007f"
CONTROLS = (
    "\0\x01\x02\x03\t\n\x0b\x0c\r\x1f\x7f\x85\x8f\xa0\xad\u034f\u061c\u1680\u200b\u200e\u2028\u2060\u3000\ufeff\ufffd"
)


def charsmap(rules: sentencepiece.SentencePieceNormalizer) -> bytes:
    return sentencepiece_model_pb2.NormalizerSpec.FromString(rules.serialized_normalizer_spec()).precompiled_charsmap


@cache
def bare(rules: sentencepiece.SentencePieceNormalizer) -> sentencepiece.SentencePieceNormalizer:
    """The rules alone: spaces stay as they come."""
    spec = sentencepiece_model_pb2.NormalizerSpec(
        precompiled_charsmap=charsmap(rules),
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        escape_whitespaces=False,
    )
    return sentencepiece.SentencePieceNormalizer(normalizer_spec=spec)


def normalized(rules: sentencepiece.SentencePieceNormalizer, text: str) -> str:
    return bare(rules).Normalize(text)


def differing(found: Normalizer, rules: sentencepiece.SentencePieceNormalizer, texts: list[str]) -> list[str]:
    """Some of the texts whose results differ."""
    joined = " ".join(texts)  # one text, for speed
    if found.normalize_str(joined) == normalized(rules, joined):
        return []
    return [text for text in texts if found.normalize_str(text) != normalized(rules, text)][:10] or ["next to others"]


@pytest.fixture(scope="module", params=[training_rules(), BEFORE], ids=["now", "before"])
def rules(request) -> sentencepiece.SentencePieceNormalizer:
    return request.param


@pytest.fixture(scope="module")
def found(rules) -> Normalizer:
    return normalizer(charsmap(rules))


def test_only_the_zero_width_non_joiner_differs_from_nmt_nfkc():
    before, now = dict(BEFORE.Decompile()), dict(training_rules().Decompile())
    assert set(before.items()) ^ set(now.items()) == {("\u200c", " ")}
    assert normalized(training_rules(), "می\u200cخواهم\u200d") == "می\u200cخواهم\u200d"


@pytest.mark.parametrize("context", ["{}", "a{}", "{}\u0301", "\u1100{}\u1161\u11a8", "か{}\u3099"])
def test_every_character(rules, found, context):
    characters = map(chr, [*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200)])
    assert not differing(found, rules, [context.format(character) for character in characters])


def test_every_rule(rules, found):
    """Except that most of the 160,000 combinations of Hangul's letters are left out."""
    texts = [text for text, _ in rules.Decompile()]
    text = " ".join(
        [text for text in texts if text[-1] not in JAMO] + [text for text in texts if text[-1] in JAMO][::23]
    )
    assert found.normalize_str(text) == normalized(rules, text)


@given(
    st.lists(
        st.one_of(
            st.sampled_from(MARKS),
            st.sampled_from(JAMO),
            st.sampled_from(KANA),
            st.sampled_from(INDIC),
            st.sampled_from(COMPATIBILITY),
            st.sampled_from(EMOJI + JOINERS),
            st.sampled_from(CONTROLS + JOINERS),
            st.sampled_from("aeioucAEIOUçệÅの\uac00\uac01 "),
            st.characters(exclude_categories=["Cs"]),
        ),
        max_size=12,
    ).map("".join)
)
def test_any_text(rules, found, text):
    for form in (text, unicodedata.normalize("NFD", text), unicodedata.normalize("NFKD", text)):
        assert found.normalize_str(form) == normalized(rules, form)


def test_other_rules_are_refused():
    rules = sentencepiece.SentencePieceNormalizer(norm_map=[("a", "b")])
    with pytest.raises(UserError, match=r"its rules of normalisation are not nmt_nfkc"):
        normalizer(charsmap(rules))
