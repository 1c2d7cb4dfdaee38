"""What a study has to do: commands, and the files that show what is done.

OUTPUT/study.yaml
OUTPUT/ARM/seed-N/run/          a run folder of pretrain, whose model is evaluated
OUTPUT/ARM/seed-N/model/        fresh weights, for an arm without training
OUTPUT/ARM/seed-N/scores/       as unibert evaluate writes them
OUTPUT/ARM/seed-N/*.log         what the commands have printed
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unibert.evaluation.config import FINE_TUNED
from unibert.study.config import Arm, Study

_UNIBERT = [sys.executable, "-m", "unibert"]


@dataclass(frozen=True)
class Item:
    """One command of a study."""

    arm: str
    seed: int
    name: str
    """``pretrain``, ``means``, ``weights``, or the task."""
    command: list[str]
    result: Path
    """The file that the command writes last."""
    log: Path
    needed_for: tuple[Path, ...] = ()
    """Scores that need the result, for a command that makes a model."""

    @property
    def done(self) -> bool:
        """Whether the command has ended well, or what needs its result has: scored models may be removed."""
        return self.result.is_file() or (bool(self.needed_for) and all(path.is_file() for path in self.needed_for))

    def __str__(self) -> str:
        return f"{self.name} of {self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """The commands on one model, in their order."""

    items: list[Item]
    lock: Path
    """File that whoever works on the job locks."""


def jobs_of(study: Study) -> list[Job]:
    """Return a job for each model: one seed of each arm that has a run or a model of its own."""
    jobs = []
    for seed in study.seeds:
        for arm in study.arms.values():
            if arm.like is None and seed in study.seeds_of(arm):
                models, scores = list(_models(study, arm, seed)), list(_scores(study, arm, seed))
                needed_for = tuple(item.result for item in scores)
                models = [replace(item, needed_for=needed_for) for item in models]
                jobs.append(Job([*models, *scores], folder_of(study, arm, seed) / ".lock"))
    return jobs


def folder_of(study: Study, arm: Arm, seed: int) -> Path:
    """Return the folder of an arm and a seed."""
    return study.output / arm.name / f"seed-{seed}"


def scores_file(study: Study, arm: Arm, seed: int, task: str) -> Path:
    """Return the file with an arm's scores in a task."""
    scores = folder_of(study, arm, seed) / "scores"
    return scores / {"sts": "sts.json", "retrieval": "scores.json"}.get(task, f"{task}/scores.json")


def model_folder(study: Study, arm: Arm, seed: int) -> Path:
    """Return the folder of the model that an arm evaluates."""
    trained = study.trained(arm)
    if trained.untrained:
        return folder_of(study, trained, seed) / "model"
    return Path(trained.model) if trained.model else folder_of(study, trained, seed) / "run" / "model"


def _models(study: Study, arm: Arm, seed: int) -> Iterator[Item]:
    """Yield the commands that make an arm's model."""
    folder = folder_of(study, arm, seed)
    if arm.overrides is not None:
        yield Item(
            arm.name,
            seed,
            "pretrain",
            [
                *(study.launch or _UNIBERT),
                "pretrain",
                str(study.run),
                *_options(arm.overrides),
                f"--seed={seed}",
                f"--run_dir={folder / 'run'}",
            ],
            folder / "run" / "model" / "model.safetensors",
            folder / "pretrain.log",
        )
    if arm.untrained:
        words = [sys.executable, "-m", "unibert.study.fresh_weights", str(arm.model), str(seed), str(folder / "model")]
        yield Item(arm.name, seed, "weights", words, folder / "model" / "model.safetensors", folder / "weights.log")
    if arm.overrides is not None and any(one.center for one in _evaluated(study, arm)):
        yield Item(
            arm.name,
            seed,
            "means",
            [*_UNIBERT, "export", str(folder / "run"), "--center"],
            folder / "run" / "model" / "language_means.safetensors",
            folder / "means.log",
        )


def _scores(study: Study, arm: Arm, seed: int) -> Iterator[Item]:
    """Yield the commands that score an arm's model, for it and for the arms that evaluate it too."""
    for one in _evaluated(study, arm):
        model = model_folder(study, one, seed)
        for task, options in study.tasks.items():
            given = {key: value for key, value in options.items() if key != "data"}
            centred = {"center": True} if one.center and task != "retrieval" else {}
            words = [
                *_UNIBERT,
                "evaluate",
                str(model),
                f"--{task}={options['data']}",
                *_options(_merged(given, {**one.evaluate, **centred}, task)),
                f"--seed={seed}",
                f"--output={folder_of(study, one, seed) / 'scores'}",
            ]
            log = folder_of(study, one, seed) / f"{task}.log"
            yield Item(one.name, seed, task, words, scores_file(study, one, seed, task), log)


def _evaluated(study: Study, arm: Arm) -> list[Arm]:
    """Return the arms that evaluate an arm's model."""
    return [one for one in study.arms.values() if one.name == arm.name or one.like == arm.name]


def _merged(options: Mapping[str, Any], others: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return nested options, of which ``others`` win; a prompt is for tasks on vectors only."""
    merged = dict(options)
    for key, value in others.items():
        if key == "prompt" and task in FINE_TUNED:
            continue
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value, task) if both else value
    return merged


def _options(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the words for nested options."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _options(value, f"{prefix}{key}.")
        else:
            yield f"--{prefix}{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
