"""Retrieval of translations at every kept checkpoint of a run, raw and centred."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from unibert.configuration import read_yaml
from unibert.errors import UserError
from unibert.evaluation.aligned import AlignedSet, read_aligned
from unibert.evaluation.embeddings import SentenceEncoder
from unibert.evaluation.retrieval import mean_accuracy
from unibert.files import write_json
from unibert.training.checkpoint.folder import complete_checkpoints, describe, step_of
from unibert.training.config import CHANGEABLE_KEYS, differences
from unibert.training.export import START_FOLDER, export_run

FILE_NAME = "retrieval_over_run.json"


def score_checkpoints(run_dir: Path, retrieval: Path, max_sentences: int) -> None:
    """Score the last layer's sentence vectors of the run's start and of each checkpoint that has no score yet.

    Scores of checkpoints that have been deleted since stay. They are kept in ``evaluation/retrieval_over_run.json``:
    ``points`` with ``step``, ``tokens`` and the mean top-1 accuracies ``raw``, ``centred`` and ``margin``, and what
    they depend on.

    Args:
        run_dir: run folder.
        retrieval: folder of aligned sentences.
        max_sentences: number of lines to use of each aligned set.

    Raises:
        UserError: if the run has nothing to score, or a folder cannot be read or written.
    """
    checkpoints, start = complete_checkpoints(run_dir / "checkpoints"), run_dir / START_FOLDER
    if not checkpoints and not start.is_dir():
        raise UserError(f"{run_dir} has no complete checkpoint yet")
    sets = read_aligned(retrieval, max_sentences)
    path = run_dir / "evaluation" / FILE_NAME
    settings = {
        "folder": str(retrieval.resolve()),
        "max_sentences": max_sentences,
        "config": read_yaml(run_dir / "config.yaml"),
    }
    points = {point["step"]: point for point in _earlier_points(path, settings)}

    def add(step: int, tokens: int, model: Path) -> None:
        points[step] = {"step": step, "tokens": tokens, **_score(model, sets)}
        _write(path, settings | {"points": [points[step] for step in sorted(points)]})

    if 0 not in points and start.is_dir():
        add(0, 0, start)
    for checkpoint in tqdm(checkpoints, desc="checkpoints", disable=None, leave=False):
        if (step := step_of(checkpoint)) not in points:
            with TemporaryDirectory() as folder:
                model = export_run(run_dir, step=step, output=Path(folder) / "model")
                add(step, describe(checkpoint)["tokens"], model)


def _earlier_points(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the points of an earlier call; none if they were scored on other text or belong to another run."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        same_run = not differences(earlier["config"], settings["config"]).keys() - set(CHANGEABLE_KEYS)
        same_text = all(earlier[key] == settings[key] for key in ("folder", "max_sentences"))
        return earlier["points"] if same_run and same_text else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _score(model: Path, sets: list[AlignedSet]) -> dict[str, float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = SentenceEncoder.load(model, device=device)
    last_layer = (
        {language: encoder.embed(sentences)[-1] for language, sentences in aligned.sentences.items()}
        for aligned in sets
    )
    return mean_accuracy(last_layer, device)


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": 1} | content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
