"""SentencePiece's normalisation of text: the rules of new models, and any model's rules as a fast tokenizer's steps.

SentencePiece replaces text from left to right, at each place by the longest of its rules that fits. ``Precompiled`` of
the tokenizers library, which reads the same rules, takes the shortest rule that fits a grapheme and drops the rest of
the grapheme: e, circumflex, acute becomes ê (huggingface/tokenizers#2334). Here the text is cut where SentencePiece
cuts it. The pieces then become what NFKC makes of them, for that is what almost all rules say; the others are replaced
one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, normalizers

from unibert.errors import UserError

_ZERO_WIDTH_NON_JOINER = "\u200c"
_ANY = r"[\s\S]"


@lru_cache(maxsize=1)
def training_rules() -> sentencepiece.SentencePieceNormalizer:
    """Return the rules with which models are trained: nmt_nfkc, except that the zero-width non-joiner stays.

    nmt_nfkc makes it a space, which cuts words of Persian, Kannada and other languages in two.
    """
    sentencepiece.set_min_log_level(2)
    rules = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc").Decompile()
    kept = [(text, replacement) for text, replacement in rules if text != _ZERO_WIDTH_NON_JOINER]
    return sentencepiece.SentencePieceNormalizer(norm_map=kept)


@lru_cache(maxsize=4)
def normalizer(charsmap: bytes) -> normalizers.Normalizer:
    """Return a normalizer that gives SentencePiece's result for any text.

    Args:
        charsmap: ``precompiled_charsmap`` of a SentencePiece model: nmt_nfkc, or ``training_rules``.

    Raises:
        UserError: if the rules are of another kind.
    """
    rules = _decompiled(charsmap)
    nfkc = _nfkc(list(map(chr, [*range(1, 0xD800), *range(0xE000, 0x30000)])))  # it changes nothing beyond
    single = {text: replacement for text, replacement in rules.items() if len(text) == 1}
    deleted = [text for text, replacement in single.items() if not replacement]
    if len(deleted) < 2:
        raise UserError("tokenizer: its rules of normalisation are not nmt_nfkc, with which UniBERT trains")
    cut, isolation = deleted[:2]  # SentencePiece deletes these characters, so that no text needs them
    replaced = {text: new for text, new in single.items() if new and new != nfkc[text]}
    kept = [text for text, new in nfkc.items() if new != text and text not in single]
    # What stands for them is replaced in the text itself.
    stand_ins = dict(zip(kept, replaced, strict=False))
    if len(stand_ins) < len(kept):
        raise UserError("tokenizer: its rules of normalisation are not nmt_nfkc, with which UniBERT trains")
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace(Regex(_cuts(rules)), cut),
        # A grapheme of one character has no rest that could be dropped.
        normalizers.Replace(Regex(rf"{_class([*replaced, *kept])}\K"), isolation),
        normalizers.Precompiled(_compiled(replaced | stand_ins)),
        normalizers.Replace(isolation, ""),
    ]
    several = {
        "".join(replaced.get(character, character) for character in text): replacement
        for text, replacement in rules.items()
        if len(text) > 1
    }
    unlike = [text for text, new in _nfkc(list(several)).items() if new != several[text]]
    steps += [normalizers.Replace(text, several[text]) for text in sorted(unlike, key=len, reverse=True)]
    steps.append(normalizers.NFKC())
    steps += [normalizers.Replace(stand_in, text) for text, stand_in in stand_ins.items()]
    steps.append(normalizers.Replace(Regex(_class(deleted)), ""))
    return normalizers.Sequence(steps)


def _decompiled(charsmap: bytes) -> dict[str, str]:
    spec = sentencepiece_model_pb2.NormalizerSpec(precompiled_charsmap=charsmap)  # type: ignore[attr-defined]
    sentencepiece.set_min_log_level(2)
    return dict(sentencepiece.SentencePieceNormalizer(normalizer_spec=spec).Decompile())


def _compiled(rules: Mapping[str, str]) -> bytes:
    compiled = sentencepiece.SentencePieceNormalizer(norm_map=sorted(rules.items())).serialized_normalizer_spec()
    spec = sentencepiece_model_pb2.NormalizerSpec.FromString(compiled)  # type: ignore[attr-defined]
    return bytes(spec.precompiled_charsmap)


def _nfkc(texts: Sequence[str]) -> dict[str, str]:
    """Return what the tokenizers library, whose Unicode version is not Python's, makes of each text."""
    return dict(zip(texts, normalizers.NFKC().normalize_str("\0".join(texts)).split("\0"), strict=True))


def _cuts(rules: Mapping[str, str]) -> str:
    """Return a pattern that matches, with no width, where a rule's text ends and NFKC might join what follows to it."""
    later = {character for text in rules for character in text[1:]}
    later |= {text for text, replacement in rules.items() if len(text) == 1 and replacement[:1] in later}
    joining = rf"[\p{{M}}{_escaped(later)}]"
    # No rule's text begins within another's: what is not joining begins one, and so does what follows a cut.
    begins = rf"(?:\G|(?!{joining}))"
    longest = rf"(?>{_longest(text for text in rules if len(text) > 1)}|{_ANY})"
    return rf"(?={_ANY}{joining}){begins}{longest}\K(?={joining})"


def _longest(texts: Iterable[str]) -> str:
    """Return a pattern for the longest of the texts: characters with the same continuations are one class."""
    continuations: dict[str, list[str]] = defaultdict(list)
    for text in sorted(texts):
        continuations[text[0]].append(text[1:])
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for character, rests in continuations.items():
        alike[tuple(rests)].append(character)
    branches = []
    for group, characters in alike.items():
        longer = [text for text in group if text]
        optional = "?" if "" in group else ""
        branches.append(_class(characters) + (f"(?:{_longest(longer)}){optional}" if longer else ""))
    return "|".join(branches)


def _class(characters: Iterable[str]) -> str:
    return f"[{_escaped(characters)}]"


def _escaped(characters: Iterable[str]) -> str:
    return "".join(rf"\x{{{ord(character):X}}}" for character in sorted(characters))
