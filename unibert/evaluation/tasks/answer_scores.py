"""Exact match and F1 of answers, as SQuAD and MLQA score them.

SQuAD (arXiv 1606.05250) compares answers without case, punctuation and English articles, word by word. MLQA
(arXiv 1910.07475) leaves out the articles of the answer's own language and every punctuation mark of Unicode, and
compares Chinese character by character. Here as there; Japanese and Thai, which neither has, are compared by character
too, and other languages have no articles.
"""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    # The article is written together with its noun. The published scorer's expression.
    "ar": r"\sال^|ال",
}
_BY_CHARACTER = {
    "zh": re.compile(r"[\u4e00-\u9fa5]"),
    "ja": re.compile(r"[\u3040-\u30ff\u3400-\u9fff]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
}


def normalized_words(answer: str, language: str) -> list[str]:
    """Return the words of an answer that count."""
    text = "".join(character for character in answer.lower() if character not in _punctuation())
    if articles := _ARTICLES.get(language):
        text = re.sub(articles, " ", text)
    characters = _BY_CHARACTER.get(language)
    if characters is None:
        return text.split()
    return "".join(f" {one} " if characters.match(one) else one for one in text).split()


def exact_match(predicted: str, gold: str, language: str) -> float:
    """Return 1.0 if both answers have the same words in the same order, else 0.0."""
    return float(normalized_words(predicted, language) == normalized_words(gold, language))


def word_f1(predicted: str, gold: str, language: str) -> float:
    """Return the harmonic mean of precision and recall of the predicted words, 0.0 without a common one."""
    predicted_words, gold_words = normalized_words(predicted, language), normalized_words(gold, language)
    common = (Counter(predicted_words) & Counter(gold_words)).total()
    if not common:
        return 0.0
    precision, recall = common / len(predicted_words), common / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def best_of(score: Callable[[str, str, str], float], predicted: str, answers: Sequence[str], language: str) -> float:
    """Return the score against the right answer that is nearest to the predicted one."""
    return max(score(predicted, gold, language) for gold in answers)


@cache
def _punctuation() -> frozenset[str]:
    """Return the characters of Unicode's punctuation categories, and those of ASCII."""
    unicode_marks = (chr(point) for point in range(sys.maxunicode + 1))
    return frozenset(string.punctuation) | {one for one in unicode_marks if unicodedata.category(one).startswith("P")}
