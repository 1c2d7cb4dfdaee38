"""``unibert evaluate``: score a model by fine-tuning it, and by its vectors without any training.

`unibert.evaluation.universality` describes the files of ``--retrieval``, `unibert.evaluation.sts` those of ``--sts``,
`unibert.evaluation.tasks.run` those of ``--ner``, ``--nli`` and ``--qa``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unibert.cpu_products import use_fastest_products
from unibert.device import choose_device
from unibert.errors import UserError
from unibert.evaluation.aligned import AlignedSet, read_aligned
from unibert.evaluation.config import FINE_TUNED, EvaluateConfig, TaskName
from unibert.evaluation.embeddings import WEIGHT_PATTERNS, SentenceEncoder
from unibert.evaluation.layers import ScoredLayers, named_layers
from unibert.evaluation.score_table import format_scores
from unibert.evaluation.sentence_pairs import SentencePairs, read_pairs
from unibert.evaluation.sts import choose_layers, format_sts, score_pairs
from unibert.evaluation.tasks.run import EvaluatedModel, format_task, run_task
from unibert.evaluation.tasks.tasks import load_task
from unibert.evaluation.universality import score_aligned
from unibert.files import file_sha256, write_atomically
from unibert.hub import local_model_folder
from unibert.language_means_file import load_language_means
from unibert.model_card import CARD_NAME, with_scores


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score the model on what the configuration names, print the scores and write their files.

    If the model folder is the export of a run, its card gets the scores of aligned sentences too.

    Returns:
        the content of scores.json, empty without aligned sentences.

    Raises:
        UserError: for a model or a folder of sentences that is missing, incomplete or malformed.
    """
    folders = config.folders()
    device = choose_device(config.device)
    use_fastest_products(device)
    config = replace(config, output=config.output_folder, model=local_model_folder(config.model))
    for name in FINE_TUNED:
        if name in folders:
            _evaluate_fine_tuned(config, name, folders[name], device)
    scores = _evaluate_vectors(config, folders, device) if {"sts", "retrieval"} & set(folders) else {}
    if scores:
        _update_card(config.model, scores)
    return scores


def _evaluate_fine_tuned(config: EvaluateConfig, name: TaskName, folder: Path, device: torch.device) -> None:
    means = _means(config)
    task = load_task(name)
    digest = _weights_sha256(config.model)
    models: dict[str, EvaluatedModel] = {name: EvaluatedModel(config.model, digest, language_means=means)}
    if config.untrained:
        models[f"{name}-untrained"] = EvaluatedModel(config.model, digest, untrained_seed=config.seed)
    for subfolder, model in models.items():
        content = run_task(
            task,
            folder,
            model,
            config.fine_tuning,
            source=config.source,
            languages=config.languages,
            seed=config.seed,
            device=device,
            output=config.output_folder / subfolder,
        )
        print(format_task(content, task))


def _evaluate_vectors(config: EvaluateConfig, folders: Mapping[TaskName, Path], device: torch.device) -> dict[str, Any]:
    """Return the content of scores.json, empty without aligned sentences."""
    pairs = read_pairs(folders["sts"], config.source, config.languages) if "sts" in folders else None
    aligned = (
        read_aligned(folders["retrieval"], config.max_sentences, config.languages) if "retrieval" in folders else None
    )
    encoder = _load(config, device)
    named = [-1] if config.center else config.layers
    layers = (
        choose_layers(encoder, pairs or [], source=config.source, max_pairs=config.max_pairs)
        if named is None
        else named_layers(named, encoder.num_layers)
    )
    described = {
        "format": 1,
        "model_folder": str(config.model),
        "weights_sha256": _weights_sha256(config.model),
    }
    if pairs is not None:
        _evaluate_pairs(config, pairs, encoder, layers, described)
    return {} if aligned is None else _evaluate_aligned(config, aligned, encoder, layers, described, device)


def _evaluate_pairs(
    config: EvaluateConfig,
    sets: Sequence[SentencePairs],
    encoder: SentenceEncoder,
    layers: ScoredLayers,
    described: Mapping[str, Any],
) -> None:
    scores, predictions = score_pairs(encoder, sets, layers=layers, max_pairs=config.max_pairs, means=_means(config))
    content = {
        **described,
        "settings": {key: getattr(config, key) for key in ("prompt", "center", "source", "max_pairs", "max_length")},
        **scores,
    }
    text = format_sts(content)
    print(text)
    _write(
        config.output_folder,
        {
            "sts-predictions.jsonl": _json_lines(predictions),
            "sts.md": text,
            "sts.json": json.dumps(content, indent=1),
        },
    )


def _evaluate_aligned(
    config: EvaluateConfig,
    sets: Sequence[AlignedSet],
    encoder: SentenceEncoder,
    layers: ScoredLayers,
    described: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    encoders = {"model": encoder}
    if config.untrained:
        encoders["baseline"] = _load(config, device, untrained_seed=config.seed)
    scored, projections, predictions = score_aligned(encoders, sets, config, layers=layers, device=device)
    scores = {**described, **scored}
    text = format_scores(scores)
    print(text)
    _write(
        config.output_folder,
        {
            "retrieval-predictions.jsonl": _json_lines(predictions),
            "projections.json": json.dumps(projections, separators=(",", ":")),
            "scores.md": text,
            "scores.json": json.dumps(scores, indent=1),
        },
    )
    return scores


def _means(config: EvaluateConfig) -> dict[str, torch.Tensor] | None:
    """Return the mean of each language that is subtracted, None if none is."""
    if not config.center:
        return None
    means = load_language_means(config.model)
    if means is None:
        raise UserError(
            f"center: {config.model} has no means of languages; write them with unibert export RUN_DIR --center"
        )
    return means


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
    """Return the digest of the weights' file; of several files, that of their digests; None without weights."""
    digests = [file_sha256(path) for pattern in WEIGHT_PATTERNS for path in sorted(model.glob(pattern))]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


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


def _json_lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files atomically; the last one, which is JSON, shows that the others are complete."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(folder / name, text)
    except OSError as error:
        raise UserError(f"{folder}: the scores cannot be written: {error.strerror}") from error
