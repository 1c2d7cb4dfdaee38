"""``unibert evaluate``: score a model folder on aligned sentences, beside its untrained baseline, and on pairs.

`unibert.evaluation.sts` describes the files of ``--sts``. Aligned sentences give three files.

``scores.json`` (layers are counted from 0, the embeddings' output; accuracies lie between 0 and 1)::

    format           1
    model_folder     as given
    weights_sha256   SHA-256 of its model.safetensors, hexadecimal; null if its weights are in other files
    num_layers       blocks + 1
    headline_layer   the layer whose scores represent the model: the first of ``layers``, else the middle one; fixed,
                     not chosen by scores
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
      probe            {"0": {"raw" | "centred": {"linear" | "mlp": {"mean", "std"}}}, …}: balanced accuracy
      geometry         {"0": {"variance", "mean_cosine", "participation_ratio", "language_share"}, …}

``projections.json`` holds what the report's scatter plots draw: for ``model`` and ``baseline``, raw and centred,
points [x, y] of each language on the first two principal components at the headline layer.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from unibert.device import choose_device
from unibert.errors import UserError
from unibert.evaluation.aligned import AlignedSet, read_aligned
from unibert.evaluation.config import EvaluateConfig
from unibert.evaluation.embeddings import SentenceEncoder
from unibert.evaluation.geometry import principal_plane, subtract_language_means, vector_geometry
from unibert.evaluation.language_probe import LabelledSentences, draw_probe_sentences, probe_accuracy
from unibert.evaluation.retrieval import KINDS, headline_layer, retrieval_accuracy
from unibert.evaluation.score_table import format_scores
from unibert.evaluation.sentence_pairs import read_pairs
from unibert.evaluation.sts import format_sts, predictions_text, score_pairs
from unibert.files import file_sha256, write_atomically
from unibert.language_means_file import load_language_means
from unibert.model_card import CARD_NAME, with_scores

PROJECTED_PER_LANGUAGE = 60


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score the model on what the configuration names, print the scores and write their files.

    If the model folder is the export of a run, its card gets the scores of aligned sentences too.

    Returns:
        the content of scores.json (see the module's docstring), empty without aligned sentences.

    Raises:
        UserError: for a model or a folder of sentences that is missing, incomplete or malformed.
    """
    if config.retrieval is None and config.sts is None:
        raise UserError(
            "there is nothing to score; name a folder of aligned sentences with --retrieval, or of pairs with --sts"
        )
    device = choose_device(config.device)
    if config.sts is not None:
        _evaluate_pairs(config, config.sts, device)
    return {} if config.retrieval is None else _evaluate_aligned(config, config.retrieval, device)


def _evaluate_pairs(config: EvaluateConfig, folder: Path, device: torch.device) -> None:
    sets = read_pairs(folder, config.source, config.languages)
    encoder = _load(config, device)
    layers = None if config.layers is None else _layers(config.layers, encoder.num_layers)
    scores, predictions = score_pairs(encoder, sets, source=config.source, layers=layers, max_pairs=config.max_pairs)
    content = {
        "format": 1,
        "model_folder": str(config.model),
        "weights_sha256": _weights_sha256(config.model),
        "settings": {key: getattr(config, key) for key in ("prompt", "source", "max_pairs", "max_length")},
        **scores,
    }
    text = format_sts(content)
    print(text)
    _write(
        config.output_folder,
        {
            "sts-predictions.jsonl": predictions_text(predictions),
            "sts.md": text,
            "sts.json": json.dumps(content, indent=1),
        },
    )


def _evaluate_aligned(config: EvaluateConfig, folder: Path, device: torch.device) -> dict[str, Any]:
    sets = read_aligned(folder, config.max_sentences, config.languages)
    sample = draw_probe_sentences(sets, config.probe_sentences, config.seed)
    parts: dict[str, Any] = {"model": None, "baseline": None}
    projections: dict[str, Any] = dict(parts)
    num_layers, layers = 0, [0]
    for name in ("model", "baseline") if config.untrained else ("model",):
        encoder = _load(config, device, untrained_seed=config.seed if name == "baseline" else None)
        num_layers = encoder.num_layers
        layers = _layers(config.layers, num_layers)
        means = None if name == "baseline" or config.prompt else load_language_means(config.model)
        retrieval, sampled = _retrieval_scores(encoder, sets, sorted(layers), sample, means, device, name)
        parts[name] = {**retrieval, **_sample_scores(sampled, sample, config, name)}
        projections[name] = _projections(sampled[layers[0]], sample)
    scores = {
        "format": 1,
        "model_folder": str(config.model),
        "weights_sha256": _weights_sha256(config.model),
        "num_layers": num_layers,
        "headline_layer": layers[0],
        "data": {
            "folder": str(folder),
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
    text = format_scores(scores)
    print(text)
    _write(
        config.output_folder,
        {
            "projections.json": json.dumps({"format": 1, **projections}, separators=(",", ":")),
            "scores.md": text,
            "scores.json": json.dumps(scores, indent=1),
        },
    )
    _update_card(config.model, scores)
    return scores


def _load(config: EvaluateConfig, device: torch.device, untrained_seed: int | None = None) -> SentenceEncoder:
    return SentenceEncoder.load(
        config.model,
        untrained_seed=untrained_seed,
        max_length=config.max_length,
        batch_tokens=config.batch_tokens,
        device=device,
        prompt=config.prompt,
    )


def _weights_sha256(model: Path) -> str | None:
    weights = model / "model.safetensors"
    return file_sha256(weights) if weights.is_file() else None


def _layers(named: Sequence[int] | None, num_layers: int) -> list[int]:
    """Return the layers to score, counted from 0; the first represents the model."""
    if named is None:
        return sorted(range(num_layers), key=lambda layer: layer != headline_layer(num_layers))
    if any(not -num_layers <= layer < num_layers for layer in named):
        raise UserError(f"layers: {list(named)} must lie between {-num_layers} and {num_layers - 1}, the last layer")
    return [layer % num_layers for layer in named]


def _retrieval_scores(
    encoder: SentenceEncoder,
    sets: Sequence[AlignedSet],
    layers: Sequence[int],
    sample: LabelledSentences,
    means: Mapping[str, torch.Tensor] | None,
    device: torch.device,
    name: str,
) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """Return ``retrieval``, its mean and ``training_means``, and the sample's vectors, (N, H) of each layer.

    The sample's sentences are among those of the sets. The vectors of a set are dropped before those of the next are
    computed.
    """
    rows_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, (sentence, label) in enumerate(zip(sample.sentences, sample.languages, strict=True)):
        rows_of[sample.names[label], sentence].append(row)
    sampled: torch.Tensor | None = None
    accuracy: dict[str, dict[str, dict[str, float]]] = {}
    less_means: dict[str, float] = {}
    for aligned in tqdm(sets, desc=f"{name}: retrieval", disable=None, leave=False):
        vectors: dict[str, torch.Tensor] = {}
        shifted: dict[str, torch.Tensor] = {}
        for language, sentences in aligned.sentences.items():
            embedded = encoder.embed(sentences)
            vectors[language] = embedded[layers]
            language_mean = None if means is None else means.get(language)
            # Behind a projection, the means are of other vectors than those that are scored.
            if language_mean is not None and len(language_mean) == embedded.shape[-1]:
                shifted[language] = embedded[-1:] - language_mean
        if shifted:
            by_direction = retrieval_accuracy(shifted, device)
            less_means |= {f"{source}>{target}": entry["raw"] for (source, target), [entry] in by_direction.items()}
        for language, sentences in aligned.sentences.items():
            if sampled is None:
                sampled = torch.empty(len(layers), len(sample.sentences), vectors[language].shape[-1])
            for index, sentence in enumerate(sentences):
                if rows := rows_of.get((language, sentence)):
                    sampled[:, rows] = vectors[language][:, index, None]
        for (source, target), by_layer in retrieval_accuracy(vectors, device).items():
            accuracy[f"{source}>{target}"] = {str(layer): entry for layer, entry in zip(layers, by_layer, strict=True)}
    mean = {
        str(layer): {kind: float(np.mean([entry[str(layer)][kind] for entry in accuracy.values()])) for kind in KINDS}
        for layer in layers
    }
    assert sampled is not None
    scores = {
        "retrieval": accuracy,
        "retrieval_mean": mean,
        "training_means": {"retrieval": less_means, "retrieval_mean": fmean(less_means.values())}
        if less_means
        else None,
    }
    return scores, dict(zip(layers, sampled.numpy(), strict=True))


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


def _update_card(model: Path, scores: Mapping[str, Any]) -> None:
    """Write the scores into the card of a run's export; other folders stay as they are."""
    card = model / CARD_NAME
    if not (model.resolve().parent / "config.yaml").is_file() or not card.is_file():
        return
    try:
        write_atomically(card, with_scores(card.read_text(encoding="utf-8"), scores))
    except OSError as error:
        # A run of somebody else can be scored all the same.
        print(f"unibert: {card} cannot get the scores: {error.strerror}", file=sys.stderr)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files atomically; the last one, which is JSON, shows that the others are complete."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(folder / name, text)
    except OSError as error:
        raise UserError(f"{folder}: the scores cannot be written: {error.strerror}") from error
