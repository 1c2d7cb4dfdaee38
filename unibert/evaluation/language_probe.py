"""Language probe: a fresh classifier that predicts the language from a sentence vector.

A training-time discriminator at chance proves little: the encoder may only be ahead of it. What counts is whether a
classifier trained afterwards, on the frozen vectors, identifies the language.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from unibert.errors import UserError
from unibert.evaluation.aligned import AlignedSet, line_groups
from unibert.evaluation.geometry import subtract_language_means

TEST_SHARE = 0.3

# Sample and split have separate random streams: from the same one, the split would repeat the sample's draw and put all
# sentences of a language on one side.
_SAMPLE_STREAM, _SPLIT_STREAM = 0, 1


@dataclass(frozen=True)
class LabelledSentences:
    """N sentences with their languages; sentences with the same meaning have the same number in ``groups`` (N,) int."""

    sentences: list[str]
    languages: np.ndarray
    groups: np.ndarray
    names: list[str]


def draw_probe_sentences(sets: Sequence[AlignedSet], per_language: int, seed: int) -> LabelledSentences:
    """Draw at most ``per_language`` sentences of each language; of an N-way set, the same lines in all languages.

    ``languages`` is (N,) int into ``names``, the sorted language codes.
    """
    generator = np.random.default_rng([_SAMPLE_STREAM, seed])
    drawn: dict[str, dict[str, int]] = {}
    for aligned, groups in zip(sets, line_groups(sets), strict=True):
        lines = generator.permutation(len(aligned))[:per_language]
        for language, sentences in aligned.sentences.items():
            drawn.setdefault(language, {}).update((sentences[line], groups[line]) for line in lines)
    texts, labels, group_numbers = [], [], []
    for label, (_, group_of) in enumerate(sorted(drawn.items())):
        candidates = list(group_of.items())
        # Only a pivot language (English in Tatoeba) has more, since every pair contributes some.
        if len(candidates) > per_language:
            candidates = [candidates[i] for i in generator.permutation(len(candidates))[:per_language]]
        for sentence, group in candidates:
            texts.append(sentence)
            labels.append(label)
            group_numbers.append(group)
    return LabelledSentences(texts, np.array(labels), np.array(group_numbers), sorted(drawn))


def split_by_group(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (train, test) row indices with no group on both sides; `TEST_SHARE` of the groups are tested."""
    distinct = np.unique(groups)
    shuffled = np.random.default_rng([_SPLIT_STREAM, seed]).permutation(distinct)
    tested = shuffled[: max(1, round(TEST_SHARE * len(distinct)))]
    in_test = np.isin(groups, tested)
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def probe_split(languages: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what `split_by_group` does; None if a language, (N,) int, is on one side only."""
    train, test = split_by_group(groups, seed)
    return (train, test) if set(languages) == set(languages[train]) == set(languages[test]) else None


def linear_accuracy(vectors: np.ndarray, languages: np.ndarray, split: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the balanced accuracy of a fresh multinomial logistic regression on one side of a split (`probe_split`).

    On raw vectors it is what `probe_accuracy` calls ``linear``, of one restart.
    """
    return _accuracy(LogisticRegression(max_iter=200, class_weight="balanced"), vectors, languages, split)


def _accuracy(
    classifier: Any, vectors: np.ndarray, languages: np.ndarray, split: tuple[np.ndarray, np.ndarray]
) -> float:
    """Train the classifier on one side of the split and return its balanced accuracy on the other."""
    train, test = split
    pipeline = make_pipeline(StandardScaler(), classifier)
    # On matrices this small, more threads wait longer than they save, above all on a busy node.
    with warnings.catch_warnings(), threadpool_limits(1):
        # The step limits are the probe's budget; reaching them is not an error.
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline.fit(vectors[train], languages[train])
    return float(balanced_accuracy_score(languages[test], pipeline.predict(vectors[test])))


def probe_accuracy(
    vectors: np.ndarray, languages: np.ndarray, groups: np.ndarray, *, restarts: int = 3, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure how well fresh classifiers predict the languages of held-out sentences.

    Each restart splits by group again and trains a multinomial logistic regression (``linear``) and a perceptron with
    one hidden layer of 128 (``mlp``) on standardised vectors. For ``centred`` vectors, each language's mean over the
    training side is subtracted: with test sentences in the mean, the two sides would have opposite offsets, which
    would push the probe below chance.

    Args:
        vectors: (N, H) float.
        languages: (N,) int labels from 0.
        groups: (N,) int; rows of one group are never on both sides.
        restarts: number of splits and initialisations.
        seed: seed of the first restart; each further one adds 1.

    Returns:
        ``{"raw" | "centred": {"linear" | "mlp": {"mean": …, "std": …}}}``, balanced accuracy (the mean of the
        languages' recalls) over the restarts. Chance is 1 / number of languages.

    Raises:
        UserError: if a language has too few sentences to be on both sides of a split.
    """
    results: dict[str, dict[str, list[float]]] = {kind: {"linear": [], "mlp": []} for kind in ("raw", "centred")}
    for restart in range(seed, seed + restarts):
        split = probe_split(languages, groups, restart)
        if split is None:
            raise UserError(
                "the language probe needs more sentences: its split left a language on one side only; raise "
                "probe_sentences or max_sentences, or leave out languages with few lines"
            )
        centred = subtract_language_means(vectors, languages, mean_rows=split[0])
        for kind, inputs in (("raw", vectors), ("centred", centred)):
            results[kind]["linear"].append(linear_accuracy(inputs, languages, split))
            mlp = MLPClassifier(hidden_layer_sizes=(128,), max_iter=60, random_state=restart)
            results[kind]["mlp"].append(_accuracy(mlp, inputs, languages, split))
    return {
        kind: {
            name: {"mean": float(np.mean(accuracies)), "std": float(np.std(accuracies))}
            for name, accuracies in by_classifier.items()
        }
        for kind, by_classifier in results.items()
    }
