"""Universality: do the vectors of several languages mean the same, and how much of the language do they show?

``scores.json`` (layers are counted from 0, the embeddings' output; accuracies lie between 0 and 1)::

    format           1
    model_folder     as given
    weights_sha256   SHA-256 of its weights, hexadecimal; of several files, that of their digests
    num_layers       blocks + 1
    headline_layer   the layer whose scores represent the model
    layer_chosen_by  "named", {"language", "split", "rows"} of the set of ``--sts`` on which this layer was best, or
                     "last layer"
    data             {"folder", "sets": {set: lines}, "left_out": {set: lines}, "languages": [codes],
                      "probe_sentences": number}
    chance           {"retrieval": mean of 1/lines over the sets, "probe": 1/languages}
    settings         the options that the scores depend on
    model, baseline  baseline is null without ``untrained``; both hold
      retrieval        {"de>en": {"0": {"raw", "centred", "margin"}, …}}: top-1 accuracy, queries in de, candidates in
                       en, at the layers that are scored
      retrieval_mean   {"0": {"raw", "centred", "margin"}, …}: mean over the directions
      training_means   null, or {"retrieval": {"de>en": accuracy}, "retrieval_mean"}: the same at the last layer, with
                       vectors less the means in the model folder (`unibert.language_means_file`); without a prompt,
                       between languages that have such means
      cka              {"de-en": {"0": value, …}}: debiased linear CKA of two languages' vectors of the same sentences,
                       about 0 for unrelated vectors, at most 1; null where it does not exist (`unibert.evaluation.cka`)
      cka_mean         {"0": value, …}: mean over the pairs that have one, else null
      probe            {"0": {"raw" | "centred": {"linear" | "mlp": {"mean", "std"}}}, …}: balanced accuracy
      geometry         {"0": {"variance", "mean_cosine", "participation_ratio", "isoscore", "language_share"}, …}

``projections.json`` holds what the report's scatter plots draw: for ``model`` and ``baseline``, raw and centred,
points [x, y] of each language on the first two principal components at the headline layer.

``retrieval-predictions.jsonl`` has a line for each direction, of the model at the headline layer: ``direction``, and
under ``raw``, ``centred`` and ``margin`` the row that each query finds. Accuracy is the share that find their own row.
``training_means``, if there are any, has the rows that vectors of the last layer less these means find.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from unibert.evaluation.aligned import AlignedSet
from unibert.evaluation.cka import debiased_cka
from unibert.evaluation.config import EvaluateConfig
from unibert.evaluation.embeddings import SentenceEncoder
from unibert.evaluation.geometry import principal_plane, subtract_language_means, vector_geometry
from unibert.evaluation.language_probe import LabelledSentences, draw_probe_sentences, probe_accuracy
from unibert.evaluation.layers import ScoredLayers
from unibert.evaluation.retrieval import KINDS, accuracy, find_translations
from unibert.language_means_file import load_language_means

PROJECTED_PER_LANGUAGE = 60


def score_aligned(
    encoders: Mapping[str, SentenceEncoder],
    sets: Sequence[AlignedSet],
    config: EvaluateConfig,
    *,
    layers: ScoredLayers,
    device: torch.device,
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Score the vectors of aligned sentences.

    Args:
        encoders: of the ``model`` and, if wanted, of its ``baseline``.
        sets: of `read_aligned`.
        config: what the scores depend on besides.
        layers: layers to score.
        device: where similarities are computed.

    Returns:
        the content of scores.json from ``num_layers`` on, that of projections.json, and the lines of
        retrieval-predictions.jsonl.
    """
    sample = draw_probe_sentences(sets, config.probe_sentences, config.seed)
    parts: dict[str, Any] = {"model": None, "baseline": None}
    projections: dict[str, Any] = dict(parts)
    predictions: dict[str, list[dict[str, Any]]] = {}
    for name, encoder in encoders.items():
        means = None if name == "baseline" or config.prompt else load_language_means(config.model)
        of_sets, sampled, predictions[name] = _set_scores(encoder, sets, layers, sample, means, device, name)
        parts[name] = {**of_sets, **_sample_scores(sampled, sample, config, name)}
        projections[name] = _projections(sampled[layers.headline], sample)
    scores = {
        "num_layers": encoders["model"].num_layers,
        "headline_layer": layers.headline,
        "layer_chosen_by": layers.chosen_by,
        "data": {
            "folder": str(config.retrieval),
            "sets": {aligned.name: len(aligned) for aligned in sets},
            "left_out": {aligned.name: aligned.left_out for aligned in sets if aligned.left_out},
            "languages": sample.names,
            "probe_sentences": len(sample.sentences),
        },
        "chance": {
            "retrieval": float(np.mean([1 / len(aligned) for aligned in sets])),
            "probe": 1 / len(sample.names),
        },
        "settings": {
            key: getattr(config, key)
            for key in ("prompt", "max_sentences", "probe_sentences", "probe_restarts", "max_length", "seed")
        },
        **parts,
    }
    return scores, {"format": 1, **projections}, predictions["model"]


def _set_scores(
    encoder: SentenceEncoder,
    sets: Sequence[AlignedSet],
    layers: ScoredLayers,
    sample: LabelledSentences,
    means: Mapping[str, torch.Tensor] | None,
    device: torch.device,
    name: str,
) -> tuple[dict[str, Any], dict[int, np.ndarray], list[dict[str, Any]]]:
    """Score the sets; return the scores, the sample's vectors, and what the sentences find at the headline layer.

    The scores are ``retrieval``, ``cka``, their means and ``training_means``; the vectors are (N, H) of each layer.
    The sample's sentences are among those of the sets. The vectors of a set are dropped before those of the next are
    computed.
    """
    rows_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, (sentence, label) in enumerate(zip(sample.sentences, sample.languages, strict=True)):
        rows_of[sample.names[label], sentence].append(row)
    sampled: torch.Tensor | None = None
    scores: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    cka: dict[str, dict[str, float | None]] = {}
    predictions: list[dict[str, Any]] = []
    less_means: dict[str, float] = {}
    for aligned in tqdm(sets, desc=f"{name}: retrieval, CKA", disable=None, leave=False):
        vectors: dict[str, torch.Tensor] = {}
        shifted: dict[str, torch.Tensor] = {}
        for language, sentences in aligned.sentences.items():
            embedded = encoder.embed(sentences)
            vectors[language] = embedded[layers.scored]
            language_mean = None if means is None else means.get(language)
            # Behind a projection, the means are of other vectors than those that are scored.
            if language_mean is not None and len(language_mean) == embedded.shape[-1]:
                shifted[language] = embedded[-1:] - language_mean
        found_less_means = {
            found.direction: found.rows["raw"] for found in (find_translations(shifted, device) if shifted else ())
        }
        less_means |= {direction: accuracy(rows) for direction, rows in found_less_means.items()}
        for language, sentences in aligned.sentences.items():
            if sampled is None:
                sampled = torch.empty(len(layers.scored), len(sample.sentences), vectors[language].shape[-1])
            for index, sentence in enumerate(sentences):
                if rows := rows_of.get((language, sentence)):
                    sampled[:, rows] = vectors[language][:, index, None]
        for found in find_translations(vectors, device):
            layer = layers.scored[found.layer]
            scores[found.direction][str(layer)] = {kind: accuracy(rows) for kind, rows in found.rows.items()}
            if layer == layers.headline:
                rows_found = {kind: rows.tolist() for kind, rows in found.rows.items()}
                if found.direction in found_less_means:
                    rows_found["training_means"] = found_less_means[found.direction].tolist()
                predictions.append({"direction": found.direction, **rows_found})
        for pair, values in debiased_cka(vectors, device).items():
            cka[pair] = {str(layer): value for layer, value in zip(layers.scored, values, strict=True)}
    mean = {
        str(layer): {kind: float(np.mean([entry[str(layer)][kind] for entry in scores.values()])) for kind in KINDS}
        for layer in layers.scored
    }
    known = {
        str(layer): [value for entry in cka.values() if (value := entry[str(layer)]) is not None]
        for layer in layers.scored
    }
    assert sampled is not None
    of_sets = {
        "retrieval": dict(scores),
        "retrieval_mean": mean,
        "training_means": {"retrieval": less_means, "retrieval_mean": fmean(less_means.values())}
        if less_means
        else None,
        "cka": cka,
        "cka_mean": {layer: fmean(values) if values else None for layer, values in known.items()},
    }
    return of_sets, dict(zip(layers.scored, sampled.numpy(), strict=True)), predictions


def _sample_scores(
    vectors: Mapping[int, np.ndarray], sample: LabelledSentences, config: EvaluateConfig, name: str
) -> dict[str, Any]:
    """Return ``probe`` and ``geometry`` of the sample's vectors, (N, H) of each layer."""
    probe, geometry = {}, {}
    for layer, rows in tqdm(vectors.items(), desc=f"{name}: language probe", disable=None, leave=False):
        probe[str(layer)] = probe_accuracy(
            rows, sample.languages, sample.groups, restarts=config.probe_restarts, seed=config.seed
        )
        geometry[str(layer)] = vector_geometry(rows, sample.languages)
    return {"probe": probe, "geometry": geometry}


def _projections(vectors: np.ndarray, sample: LabelledSentences) -> dict[str, dict[str, list[list[float]]]]:
    rows = np.concatenate(
        [np.flatnonzero(sample.languages == label)[:PROJECTED_PER_LANGUAGE] for label in range(len(sample.names))]
    )
    languages = sample.languages[rows]
    centred = subtract_language_means(vectors, sample.languages)
    return {
        kind: {
            name: [[round(float(x), 4), round(float(y), 4)] for x, y in plane[languages == label]]
            for label, name in enumerate(sample.names)
        }
        for kind, plane in (("raw", principal_plane(vectors[rows])), ("centred", principal_plane(centred[rows])))
    }
