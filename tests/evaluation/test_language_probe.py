import numpy as np
import pytest

from unibert.errors import UserError
from unibert.evaluation.aligned import AlignedSet
from unibert.evaluation.language_probe import draw_probe_sentences, probe_accuracy, split_by_group

LANGUAGES, LINES, WIDTH = 4, 120, 12
LABELS, GROUPS = np.repeat(np.arange(LANGUAGES), LINES), np.tile(np.arange(LINES), LANGUAGES)


def noise(seed=0):
    return np.random.default_rng(seed).normal(size=(LANGUAGES * LINES, WIDTH))


def best(scores, kind):
    return max(entry["mean"] for entry in scores[kind].values())


def test_vectors_without_language_score_chance():
    scores = probe_accuracy(noise(), LABELS, GROUPS, restarts=4)
    # 144 test sentences a restart: four standard deviations around a chance of 1/4 over 4 restarts are 0.07.
    assert all(abs(entry["mean"] - 1 / LANGUAGES) < 0.08 for kind in scores.values() for entry in kind.values())


def test_an_offset_is_found_in_raw_vectors_and_not_in_centred_ones():
    offsets = 4 * np.random.default_rng(1).normal(size=(LANGUAGES, WIDTH))
    scores = probe_accuracy(noise() + offsets[LABELS], LABELS, GROUPS, restarts=2)
    assert all(entry["mean"] > 0.98 for entry in scores["raw"].values())
    assert best(scores, "centred") < 0.4


def test_the_mlp_finds_a_language_that_lies_in_the_spread_alone():
    scores = probe_accuracy(noise() * np.array([0.2, 0.6, 2, 6])[LABELS, None], LABELS, GROUPS, restarts=2)
    assert scores["centred"]["mlp"]["mean"] > 0.6
    assert scores["centred"]["linear"]["mean"] < 0.45


def test_remembering_sentences_gains_nothing():
    # Each sentence occurs twice, and its vector does not depend on the language: a split between the two copies would
    # let the probe remember the label of the first (0.9 and more at this width).
    meaning = np.random.default_rng(2).normal(size=(LANGUAGES * LINES // 2, 200))
    twice = np.repeat(np.arange(len(meaning)), 2)
    scores = probe_accuracy(meaning[twice], LABELS, twice, restarts=2)
    assert best(scores, "raw") < 0.4


def test_no_group_is_on_both_sides_and_every_row_on_one():
    for seed in range(5):
        train, test = split_by_group(GROUPS, seed)
        assert not set(GROUPS[train]) & set(GROUPS[test])
        assert sorted([*train, *test]) == list(range(len(GROUPS)))
        assert len(test) == pytest.approx(0.3 * len(GROUPS), abs=LANGUAGES)
    assert not np.array_equal(split_by_group(GROUPS, 0)[1], split_by_group(GROUPS, 1)[1])


def test_the_probe_is_reproducible():
    first, second = (probe_accuracy(noise(), LABELS, GROUPS, restarts=2, seed=3) for _ in range(2))
    assert first == second


def test_n_way_samples_hold_the_same_lines_of_every_language():
    aligned = AlignedSet("set", {code: [f"{code}{line}" for line in range(50)] for code in ("de", "en", "fr")}, 0)
    sample = draw_probe_sentences([aligned], per_language=10, seed=0)
    assert np.bincount(sample.languages).tolist() == [10, 10, 10]
    lines = [
        {text[2:] for text, label in zip(sample.sentences, sample.languages, strict=True) if label == i}
        for i in range(3)
    ]
    assert lines[0] == lines[1] == lines[2]
    groups = dict(zip(sample.sentences, sample.groups, strict=True))
    assert all(groups[f"de{line}"] == groups[f"fr{line}"] for line in lines[0])


def test_a_pivot_language_gets_no_more_than_its_share():
    sets = [
        AlignedSet(
            f"{code}-en", {code: [f"{code}{i}" for i in range(30)], "en": [f"en-{code}{i}" for i in range(30)]}, 0
        )
        for code in ("de", "fr", "tr")
    ]
    sample = draw_probe_sentences(sets, per_language=20, seed=0)
    assert sample.names == ["de", "en", "fr", "tr"]
    assert np.bincount(sample.languages).tolist() == [20, 20, 20, 20]
    english = [text[3:5] for text, label in zip(sample.sentences, sample.languages, strict=True) if label == 1]
    assert set(english) == {"de", "fr", "tr"}


def test_the_split_is_independent_of_the_sample_drawn_with_the_same_seed():
    sets = [
        AlignedSet(f"{code}-en", {code: [f"{code}{i}" for i in range(120)], "en": [f"en{i}" for i in range(120)]}, 0)
        for code in ("af", "de", "fr")
    ]
    for seed in range(3):
        sample = draw_probe_sentences(sets, per_language=20, seed=seed)
        _, test = split_by_group(sample.groups, seed)
        # 6 of 20 expected; 0 or 20 would be the sample's own draw again.
        assert np.all(np.isin(np.bincount(sample.languages[test]), range(1, 15)))


def test_too_few_sentences_are_refused():
    with pytest.raises(UserError, match="needs more sentences"):
        probe_accuracy(noise()[:5], np.array([0, 0, 0, 0, 1]), np.arange(5))
