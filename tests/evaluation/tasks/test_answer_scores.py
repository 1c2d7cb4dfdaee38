"""Exact match and F1 of answers. Values are those of the published scorers of SQuAD and MLQA."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unibert.evaluation.tasks.answer_scores import best_of, exact_match, normalized_words, word_f1

SQUAD_SCORER = Path(sys.prefix) / "clients-4" / "transformers" / "data" / "metrics" / "squad_metrics.py"


@pytest.mark.parametrize(
    ("language", "answer", "words"),
    [
        ("en", "The  Cat's hat, a “hat”!", ["cats", "hat", "hat"]),
        ("en", "theory a-an-the", ["theory", "aanthe"]),
        ("de", "Der Bahnhof des Dorfes", ["bahnhof", "dorfes"]),
        ("de", "the dog", ["the", "dog"]),
        ("es", "los Niños y una casa", ["niños", "y", "casa"]),
        ("vi", "của những người", ["người"]),
        ("hi", "एक घर।", ["एक", "घर"]),
        ("ar", "الكتاب", ["كتاب"]),
        ("zh", "中文，abc 12年", ["中", "文", "abc", "12", "年"]),
        ("ja", "東京タワーは333m", ["東", "京", "タ", "ワ", "ー", "は", "333m"]),
        ("ru", "Дом, the дом", ["дом", "the", "дом"]),
        ("tr", "—", []),
    ],
)
def test_words_that_count(language, answer, words):
    assert normalized_words(answer, language) == words


def test_f1_counts_repeated_words_as_often_as_both_have_them():
    # Two of three predicted words are right, and two of four right ones are found.
    assert word_f1("red red blue", "red red green red", "en") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_answers_without_a_word_have_no_common_one():
    assert exact_match("the", "a", "en") == 1.0
    assert word_f1("the", "a", "en") == 0.0


def test_the_nearest_right_answer_counts():
    assert best_of(exact_match, "12 May", ["May 12", "12 May"], "en") == 1.0
    assert best_of(word_f1, "12 May", ["May", "12th of May"], "en") == pytest.approx(2 / 3)


TEXT = st.text(st.sampled_from("abcte hn.,!'-1 \t"), max_size=30)


@pytest.fixture(scope="session")
def squad_scorer():
    """SQuAD's scorer as transformers 4 has it."""
    if not SQUAD_SCORER.is_file():
        pytest.skip("no transformers 4 in .venv/clients-4; make .venv/clients-4 installs it")
    source = SQUAD_SCORER.read_text(encoding="utf-8")
    # Of its imports from transformers, these functions need none.
    lines = [line for line in source.split("\n") if not line.startswith(("from ...", "logger ="))]
    spec = importlib.util.spec_from_loader("squad_metrics", loader=None)
    module = importlib.util.module_from_spec(spec)
    exec("\n".join(lines), module.__dict__)
    return module


@given(predicted=TEXT, gold=TEXT)
def test_english_is_scored_as_squad_scores_it(squad_scorer, predicted, gold):
    """Without marks beyond ASCII, which SQuAD leaves in the text and MLQA does not."""
    assert exact_match(predicted, gold, "en") == squad_scorer.compute_exact(gold, predicted)
    if normalized_words(predicted, "en") and normalized_words(gold, "en"):
        # The same operations on the same integers.
        assert word_f1(predicted, gold, "en") == squad_scorer.compute_f1(gold, predicted)


@given(st.text(max_size=40), st.sampled_from(["en", "de", "ar", "zh", "ja", "th", "ru"]))
def test_every_answer_is_right_when_it_is_the_right_one(answer, language):
    assert exact_match(answer, answer, language) == 1.0
    assert word_f1(answer, answer, language) == (1.0 if normalized_words(answer, language) else 0.0)
