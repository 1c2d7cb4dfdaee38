"""The scores of a study, computed anew from the predictions that the evaluation has kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from unibert.errors import UserError
from unibert.evaluation.tasks.run import read_predictions
from unibert.evaluation.tasks.task import MIXED
from unibert.evaluation.tasks.tasks import load_task
from unibert.study.config import Arm, Study
from unibert.study.statistics import TaskScores
from unibert.study.work import folder_of, scores_file

RETRIEVAL_CENTRED = "retrieval centred"
"""Retrieval after the means of the scored sentences are subtracted, beside retrieval as it is."""


@dataclass(frozen=True)
class Unit:
    """One test set in one language, scored for one arm and seed."""

    score: float
    examples: list[float] | None
    """The score of each example; None where the score is no mean over examples."""


Units = dict[str, Unit]


@dataclass(frozen=True)
class StudyScores:
    """What a study has measured."""

    tasks: dict[str, TaskScores]
    """By task, all arms in the order of the study."""
    chance: dict[str, float]
    """The score of guessing: the most frequent label in nli, one sentence in all for retrieval."""
    diagnostics: dict[str, list[dict[str, float | None]]]
    """By arm, for each seed."""


def read_scores(study: Study) -> StudyScores:
    """Read the predictions of all arms and seeds and score them.

    Raises:
        UserError: if something is not scored yet, predictions are damaged or of another model, or they contradict the
            scores beside them.
    """
    found: dict[str, dict[str, list[Units]]] = {}
    chance: dict[str, float] = {}
    diagnostics: dict[str, list[dict[str, float | None]]] = {}
    for arm in study.arms.values():
        for seed in study.seeds_of(study.trained(arm)):
            digests: dict[str, str | None] = {}
            for task in study.tasks:
                content = _read_json(scores_file(study, arm, seed, task))
                digests[task] = content["weights_sha256"]
                for name, units in _READERS.get(task, _fine_tuned)(study, arm, seed, task, content).items():
                    found.setdefault(name, {}).setdefault(arm.name, []).append(units)
                chance |= _chance(task, content)
            if len(set(digests.values())) > 1:
                first, *others = digests
                other = next(task for task in others if digests[task] != digests[first])
                raise UserError(
                    f"{folder_of(study, arm, seed)}: {first} and {other} were scored with different models; remove the "
                    "scores of one and run the study again"
                )
            diagnostics.setdefault(arm.name, []).append(_diagnostics(study, arm, seed))
    tasks = {name: _task_scores(study, by_arm) for name, by_arm in found.items()}
    return StudyScores(tasks, chance, diagnostics)


def _task_scores(study: Study, by_arm: Mapping[str, Sequence[Units]]) -> TaskScores:
    names = sorted({unit for runs in by_arm.values() for units in runs for unit in units})
    # An arm that lacks some languages, as one with means of languages may, restricts the comparison to the others.
    names = [name for name in names if all(name in units for runs in by_arm.values() for units in runs)]
    has_examples = all(units[name].examples is not None for runs in by_arm.values() for units in runs for name in names)
    return TaskScores(
        seeds=study.seeds,
        units=names,
        scores={
            arm: np.array([[units[name].score for name in names] for units in runs]) for arm, runs in by_arm.items()
        },
        examples={
            arm: [np.array([units[name].examples for units in runs]) for name in names] for arm, runs in by_arm.items()
        }
        if has_examples
        else {},
    )


def _fine_tuned(study: Study, arm: Arm, seed: int, name: str, content: Mapping[str, Any]) -> dict[str, Units]:
    task = load_task(name)
    folder = scores_file(study, arm, seed, name).parent / "predictions"
    units = {}
    for unit, described in content["sets"].items():
        if MIXED in unit:
            continue
        path = folder / f"{unit.replace(' ', '-')}.jsonl"
        lines = read_predictions(path)
        score = task.score(lines, described["language"])[task.metric]
        _raise_if_changed(path, score, content["scores"][unit][task.metric])
        units[unit] = Unit(score, task.example_scores(lines, described["language"]))
    return {name: units}


def _sts(study: Study, arm: Arm, seed: int, name: str, content: Mapping[str, Any]) -> dict[str, Units]:
    path = scores_file(study, arm, seed, name).with_name("sts-predictions.jsonl")
    by_language: dict[str, list[tuple[float, float]]] = {}
    for line in read_predictions(path):
        by_language.setdefault(line["language"], []).append((line["score"], line["cosine"]))
    units = {}
    for language, pairs in by_language.items():
        score = float(spearmanr(*zip(*pairs, strict=True)).statistic)
        _raise_if_changed(path, score, content["scores"][language][str(content["layer"])]["spearman"])
        units[language] = Unit(score, None)
    return {name: units}


def _retrieval(study: Study, arm: Arm, seed: int, name: str, content: Mapping[str, Any]) -> dict[str, Units]:
    path = scores_file(study, arm, seed, name).with_name("retrieval-predictions.jsonl")
    lines = read_predictions(path)
    kinds = {name: "training_means" if arm.center else "raw", RETRIEVAL_CENTRED: "centred"}
    found: dict[str, Units] = {task: {} for task in kinds}
    for line in lines:
        for task, kind in kinds.items():
            if kind not in line:
                continue
            right = [float(row == index) for index, row in enumerate(line[kind])]
            found[task][line["direction"]] = Unit(float(np.mean(right)), right)
    layer = str(content["headline_layer"])
    for direction, unit in found[RETRIEVAL_CENTRED].items():
        _raise_if_changed(path, unit.score, content["model"]["retrieval"][direction][layer]["centred"])
    if not found[name]:
        raise UserError(f"{path}: has no retrieval with the means of training text, which arms.{arm.name}.center needs")
    return found


_READERS: dict[str, Callable[..., dict[str, Units]]] = {"sts": _sts, "retrieval": _retrieval}


def _raise_if_changed(path: Path, score: float, kept: float | None) -> None:
    # Sums in another order differ in the last of 16 digits.
    if kept is None or not math.isclose(score, kept, rel_tol=1e-9, abs_tol=1e-12):
        raise UserError(
            f"{path}: these predictions score {score:.6f}, and the scores beside them say {kept}; one of the files is "
            "of another model, so remove them and run the study again"
        )


def _chance(task: str, content: Mapping[str, Any]) -> dict[str, float]:
    if task == "retrieval":
        return dict.fromkeys((task, RETRIEVAL_CENTRED), content["chance"]["retrieval"])
    if task == "nli":
        return {task: content["mean"]["majority"]}
    return {task: 0.0}


def _diagnostics(study: Study, arm: Arm, seed: int) -> dict[str, float | None]:
    """Return what tells how the scores have come about: probes, collapse, and what training has measured last."""
    found: dict[str, float | None] = {}
    if "retrieval" in study.tasks:
        scores = _read_json(scores_file(study, arm, seed, "retrieval"))
        layer = str(scores["headline_layer"])
        probe, geometry = (scores["model"][key][layer] for key in ("probe", "geometry"))
        found |= {
            "probe_linear": probe["raw"]["linear"]["mean"],
            "probe_mlp": probe["raw"]["mlp"]["mean"],
            "probe_mlp_centred": probe["centred"]["mlp"]["mean"],
            "probe_chance": scores["chance"]["probe"],
            "variance": geometry["variance"],
            "mean_cosine": geometry["mean_cosine"],
            "language_share": geometry["language_share"],
        }
    metrics = folder_of(study, study.trained(arm), seed) / "run" / "metrics.jsonl"
    for line in read_predictions(metrics) if metrics.is_file() else []:
        for key in ("heldout_mlm_loss", "adversary_accuracy", "adversary_chance"):
            if key in line:
                found[key] = line[key]
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; run the study to its end first") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as scores ({error}); remove it and run the study again") from error
