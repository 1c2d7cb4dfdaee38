"""``unibert evaluate``: score a model folder on aligned sentences and on pairs with human scores.

`unibert.evaluation.universality` describes the files of ``--retrieval``, `unibert.evaluation.sts` those of ``--sts``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from unibert.device import choose_device
from unibert.errors import UserError
from unibert.evaluation.aligned import AlignedSet, read_aligned
from unibert.evaluation.config import EvaluateConfig
from unibert.evaluation.embeddings import SentenceEncoder
from unibert.evaluation.layers import ScoredLayers, named_layers
from unibert.evaluation.score_table import format_scores
from unibert.evaluation.sentence_pairs import SentencePairs, read_pairs
from unibert.evaluation.sts import choose_layers, format_sts, score_pairs
from unibert.evaluation.universality import score_aligned
from unibert.files import file_sha256, write_atomically
from unibert.model_card import CARD_NAME, with_scores


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score the model on what the configuration names, print the scores and write their files.

    If the model folder is the export of a run, its card gets the scores of aligned sentences too.

    Returns:
        the content of scores.json, empty without aligned sentences.

    Raises:
        UserError: for a model or a folder of sentences that is missing, incomplete or malformed.
    """
    if config.retrieval is None and config.sts is None:
        raise UserError(
            "there is nothing to score; name a folder of aligned sentences with --retrieval, or of pairs with --sts"
        )
    device = choose_device(config.device)
    pairs = None if config.sts is None else read_pairs(config.sts, config.source, config.languages)
    aligned = (
        None if config.retrieval is None else read_aligned(config.retrieval, config.max_sentences, config.languages)
    )
    encoder = _load(config, device)
    layers = (
        choose_layers(encoder, pairs or [], source=config.source, max_pairs=config.max_pairs)
        if config.layers is None
        else named_layers(config.layers, encoder.num_layers)
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
    scores, predictions = score_pairs(encoder, sets, layers=layers, max_pairs=config.max_pairs)
    content = {
        **described,
        "settings": {key: getattr(config, key) for key in ("prompt", "source", "max_pairs", "max_length")},
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
