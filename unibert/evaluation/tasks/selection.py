"""Which sets a model is trained on, which choose the epoch, and which are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unibert.errors import UserError
from unibert.evaluation.tasks.files import TaskFile, find_files
from unibert.evaluation.tasks.options import FineTuningConfig
from unibert.evaluation.tasks.task import MIXED, Examples, Task

HELD_OUT_SHARE = 0.1
"""Share of the training data, at its end, that chooses the epoch where there is no development set."""


@dataclass(frozen=True)
class Fit:
    """One fine-tuning and what is scored with it."""

    languages: list[str]
    """Languages of the training data."""
    training: list[Examples[Any]]
    dev: Examples[Any]
    tested: list[Examples[Any]]
    sizes: Mapping[str, int]
    """Number of examples of each tested set before it was capped."""

    def with_tested(self, tested: list[Examples[Any]]) -> Fit:
        """Return a fit that scores other sets."""
        return replace(self, tested=tested)


def select_fits(
    task: Task[Any], folder: Path, options: FineTuningConfig, *, source: str, languages: Sequence[str] | None
) -> list[Fit]:
    """Choose and read the sets of a folder.

    All test sets in ``languages`` are scored, and development sets of languages that have no test set in their
    collection. The epoch is chosen by data of a language of the training only: by a development set that is not
    scored, of the training data's collection if it has one, or else by the end of the training data.

    Returns:
        one fit, or for training in each language one for each that has training data.

    Raises:
        UserError: if there are no training data or nothing to score, or a file is malformed.
    """
    files = find_files(folder, task.name, task.patterns)
    tested = _tested(folder, files, languages)
    trained = sorted({file.language for file in files if file.split == "train"})
    if options.training == "source":
        if source not in trained:
            raise UserError(
                f"{folder} has no training set of {source} for {task.name}; name one of {', '.join(trained)} with "
                "--source"
                if trained
                else f"{folder} has no training set for {task.name}; add one"
            )
        groups = [([source], tested)]
    elif options.training == "all":
        groups = [(trained, tested)]
    else:
        groups = [([one], [file for file in tested if file.language == one]) for one in trained]
        groups = [(own, sets) for own, sets in groups if sets]
    if not trained or not groups:
        raise UserError(f"{folder} has no training set for {task.name} in a language that is scored; add one")
    return [_fit(task, files, own, sets, options, source) for own, sets in groups]


def _tested(folder: Path, files: Sequence[TaskFile], languages: Sequence[str] | None) -> list[TaskFile]:
    with_test = {file.unit for file in files if file.split == "test"}
    tested = [
        file
        for file in files
        if (file.split == "test" or (file.split == "dev" and file.unit not in with_test))
        and (languages is None or file.language in languages)
    ]
    for language in languages or ():
        if not any(file.language == language for file in tested):
            raise UserError(f"languages: {folder} has no test set of {language}; leave it out")
    if not tested:
        raise UserError(f"{folder} has no test set; add one")
    return tested


def _fit(
    task: Task[Any],
    files: Sequence[TaskFile],
    languages: list[str],
    tested: Sequence[TaskFile],
    options: FineTuningConfig,
    source: str,
) -> Fit:
    training = [task.read(file) for file in files if file.split == "train" and file.language in languages]
    collections = {part.file.collection for part in training}
    choosing = [file for file in files if file.split == "dev" and file.language in languages and file not in tested]
    # Among equals, the source language; False comes first.
    choosing.sort(key=lambda file: (file.collection not in collections, file.language != source))
    if choosing:
        dev = task.read(choosing[0])
    else:
        first = training[0]
        kept = len(first.examples) - max(1, round(HELD_OUT_SHARE * len(first.examples)))
        if kept < 1:
            raise UserError(
                f"{first.file.path}: has too few examples to hold some out for choosing the epoch; add a dev set"
            )
        dev = replace(first, examples=first.examples[kept:])
        training[0] = replace(first, examples=first.examples[:kept])
    read = [task.read(file) for file in tested]
    capped = [part.spread(options.max_test) for part in read]
    mixed = _mixed(task, capped, source) if options.mixed else []
    return Fit(
        languages=languages,
        training=[part.spread(options.max_train) for part in training],
        dev=dev.spread(options.max_test),
        tested=[*capped, *mixed],
        sizes={part.file.unit: len(part.examples) for part in (*mixed, *read)},
    )


def _mixed(task: Task[Any], tested: Sequence[Examples[Any]], source: str) -> list[Examples[Any]]:
    """Return sets with one text in ``source`` and one in another language, of collections that are translations."""
    found = []
    for one in tested:
        for other in tested:
            same_collection = one.file.collection == other.file.collection and one is not other
            if same_collection and source in (one.file.language, other.file.language):
                examples = task.mixed(one, other)
                if examples:
                    language = f"{one.file.language}{MIXED}{other.file.language}"
                    found.append(Examples(replace(one.file, language=language), examples, left_out=0))
    return found
