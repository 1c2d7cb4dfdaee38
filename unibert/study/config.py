"""The study file: arms, seeds and tasks.

    output: study
    run: base.yaml
    seeds: [1, 2, 3]
    reference: mlm
    arms:
      mlm: {run: {adversary: null, distillation: null}}
      distilled: {run: {adversary: null}}
      unibert: {}
      unibert-centred: {like: unibert, center: true}
      teacher: {model: intfloat/multilingual-e5-small, evaluate: {prompt: "query: "}}
      untrained: {model: intfloat/multilingual-e5-small, untrained: true}
    tasks:
      nli: {data: xnli, fine_tuning: {max_train: 9000, max_test: 500}}
      retrieval: {data: tatoeba, layers: [-1]}

``run`` is a run file or a preset. An arm overrides some of its keys (``run``), or evaluates the run of another arm
otherwise (``like``), or a finished model, which is fine-tuned with the first seed only (``model``), or fresh weights in
its architecture (``untrained``). The options of a task, and those of an arm under ``evaluate``, are those of ``unibert
evaluate``; ``data`` is the task's folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unibert.configuration import check_keys, read_yaml
from unibert.errors import UserError
from unibert.evaluation.config import EvaluateConfig
from unibert.run_files import run_file
from unibert.training.config import RunConfig

TASKS = ("ner", "nli", "qa", "sts", "retrieval")
"""In the order in which they are shown."""
_KEYS = {"output", "run", "seeds", "reference", "baseline", "arms", "tasks", "launch"}
_ARM_KEYS = {"run", "like", "model", "untrained", "center", "evaluate"}
_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Arm:
    """One configuration of a study."""

    name: str
    overrides: Mapping[str, Any] | None
    """Keys of the run file, nested; None for an arm that trains nothing."""
    like: str | None
    """Arm whose run is evaluated."""
    model: str | None
    """Finished model, as a folder or a hub id."""
    untrained: bool
    """Replace the weights of ``model`` by fresh ones."""
    center: bool
    """Subtract each language's mean of training text, as ``unibert evaluate --center``."""
    evaluate: Mapping[str, Any]
    """Options of the evaluation, nested."""


@dataclass(frozen=True)
class Study:
    """Arms × seeds × tasks."""

    output: Path
    run: str | None
    seeds: list[int]
    reference: str
    baseline: str | None
    """Arm whose improvement the others' is compared with, "traditional baselines" in the paper."""
    arms: dict[str, Arm]
    tasks: dict[str, dict[str, Any]]
    launch: list[str]
    """Words that start a training, before ``pretrain``."""

    def seeds_of(self, arm: Arm) -> list[int]:
        """Return the seeds of an arm: the first only, if it trains nothing."""
        return self.seeds[:1] if arm.model else self.seeds

    def trained(self, arm: Arm) -> Arm:
        """Return the arm whose run or model an arm evaluates."""
        return self.arms[arm.like] if arm.like else arm


def read_study(path: Path) -> Study:
    """Read a study file, or that in the folder of a study.

    Raises:
        UserError: for a key that is unknown or missing, or a combination that makes no sense.
    """
    if path.is_dir():
        path = path / "study.yaml"
    values = read_yaml(path)

    def mistake(text: str) -> UserError:
        return UserError(f"{path}: {text}")

    if unknown := sorted(set(values) - _KEYS):
        raise mistake(f"{unknown[0]}: is no key of a study; its keys are {', '.join(sorted(_KEYS))}")
    for key in ("output", "seeds", "reference", "arms", "tasks"):
        if not values.get(key):
            raise mistake(f"{key}: is missing")
    seeds = values["seeds"]
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise mistake(f"seeds: must be a list of different whole numbers, got {seeds}")
    for key in ("arms", "tasks"):
        if not isinstance(values[key], dict):
            raise mistake(f"{key}: must be names and their options")
    arms = {str(name): _arm(str(name), entry or {}, mistake) for name, entry in values["arms"].items()}
    for arm in arms.values():
        if arm.like is not None and (arm.like not in arms or arms[arm.like].like):
            raise mistake(f"arms.{arm.name}.like: {arm.like} is no arm with a run of its own")
        if arm.overrides is not None:
            if values.get("run") is None:
                raise mistake(f"run: is missing, and arms.{arm.name} trains")
            check_keys(RunConfig, dict(arm.overrides), source=f"{path}: arms.{arm.name}.run")
        check_keys(EvaluateConfig, dict(arm.evaluate), source=f"{path}: arms.{arm.name}.evaluate")
    for key in ("reference", "baseline"):
        if values.get(key) is not None and values[key] not in arms:
            raise mistake(f"{key}: {values[key]} is none of the arms {', '.join(arms)}")
    tasks = {}
    for name, options in values["tasks"].items():
        if name not in TASKS:
            raise mistake(f"tasks.{name}: is none of {', '.join(TASKS)}")
        if not isinstance(options, dict) or not options.get("data"):
            raise mistake(f"tasks.{name}.data: is missing; name the folder with the task's files")
        check_keys(EvaluateConfig, options, source=f"{path}: tasks.{name}")
        tasks[name] = options
    if values.get("run") is not None:
        run_file(values["run"])
    return Study(
        output=Path(values["output"]),
        run=values.get("run"),
        seeds=seeds,
        reference=values["reference"],
        baseline=values.get("baseline"),
        arms=arms,
        tasks={name: tasks[name] for name in TASKS if name in tasks},
        launch=str(values.get("launch") or "").split(),
    )


def _arm(name: str, entry: Any, mistake: Any) -> Arm:
    where = f"arms.{name}"
    if not _NAME.fullmatch(name):
        raise mistake(f"{where}: an arm's name has letters, digits, dots and dashes only")
    if not isinstance(entry, dict):
        raise mistake(f"{where}: must be a mapping, such as {{run: {{adversary: null}}}}")
    if unknown := sorted(set(entry) - _ARM_KEYS):
        raise mistake(f"{where}.{unknown[0]}: is no key of an arm; its keys are {', '.join(sorted(_ARM_KEYS))}")
    if len({"run", "like", "model"} & set(entry)) > 1:
        raise mistake(f"{where}: has more than one of run, like and model")
    if entry.get("untrained") and "model" not in entry:
        raise mistake(f"{where}.untrained: needs a model, whose architecture it takes")
    trains = "like" not in entry and "model" not in entry
    return Arm(
        name=name,
        overrides=(entry.get("run") or {}) if trains else None,
        like=entry.get("like"),
        model=entry.get("model"),
        untrained=bool(entry.get("untrained")),
        center=bool(entry.get("center")),
        evaluate=entry.get("evaluate") or {},
    )
