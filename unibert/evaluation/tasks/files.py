"""Which files of a folder hold the examples of a task, in which language and split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unibert.errors import UserError
from unibert.evaluation.aligned import language_code
from unibert.evaluation.packed_files import unpacked_name

SPLITS = {"val": "dev", "valid": "dev", "testa": "dev", "testb": "test"}
"""Names of splits in file names that are not ours."""
_CODES_OF_CONLL = {"esp": "es", "ned": "nl"}
"""Those that are no ISO 639-3 codes."""


@dataclass(frozen=True)
class TaskFile:
    """One file with examples of one language and split."""

    path: Path
    collection: str
    """The data set that the file belongs to, such as xquad."""
    language: str
    split: str
    """train, dev or test."""
    columns: tuple[str | int, ...] = ()
    """Names or numbers of the columns, if they differ from those of the known layouts."""
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    """Labels of the file, and those that they stand for."""

    @property
    def unit(self) -> str:
        """Name of the set in tables: collection and language."""
        return f"{self.collection} {self.language}"


@dataclass(frozen=True)
class Pattern:
    """A file name of a known layout.

    Args:
        name: regular expression with the groups ``language`` and ``split``, for the last two parts of the path without
            the ending of a compression. A group ``part`` is appended to the collection.
        collection: name of the data set; else that of the group ``collection`` or of the folder, or of the folder above
            a group ``subfolder``.
        language: the language, if the name does not hold it.
        split: the split, if the name does not hold it.
    """

    name: str
    collection: str = ""
    language: str = ""
    split: str = ""

    def match(self, path: Path) -> TaskFile | None:
        """Return the file that the path stands for, if it has this layout."""
        found = re.fullmatch(self.name, f"{path.parent.name}/{unpacked_name(path)}")
        if found is None:
            return None
        groups = found.groupdict()
        language = self.language or groups["language"]
        split = self.split or groups["split"].lower()
        folder = path.parent.parent if "subfolder" in groups else path.parent
        collection = self.collection or groups.get("collection") or folder.resolve().name
        if part := groups.get("part"):
            collection = f"{collection}-{part}"
        return TaskFile(
            path, collection, _CODES_OF_CONLL.get(language, language_code(language)), SPLITS.get(split, split)
        )


def find_files(folder: Path, task: str, patterns: Sequence[Pattern]) -> list[TaskFile]:
    """Return the files of a folder and its subfolders that have a known layout or stand in its list.

    The list ``TASK.yaml`` in the folder describes files of other layouts, and overrules their names::

        - {file: masakha/swa/test.txt, collection: masakha, language: sw, split: test, labels: {DATE: O}}

    ``collection``, ``columns`` and ``labels`` may be left out.

    Args:
        folder: folder with the sets.
        task: short name of the task.
        patterns: the known layouts, tried in this order.

    Raises:
        UserError: if there is no such folder or no set in it, or the list is malformed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one with sets of {task} files")
    listed = list(_listed(folder, f"{task}.yaml"))
    paths = {file.path.resolve() for file in listed}
    recognised = [
        file
        for path in sorted(folder.rglob("*"))
        if path.resolve() not in paths and (file := _recognised(path, patterns)) is not None
    ]
    files = [*listed, *recognised]
    if not files:
        raise UserError(
            f"{folder} holds no file of a known layout for {task}; describe its files in {folder / f'{task}.yaml'} "
            "(docs/evaluation.md)"
        )
    _raise_if_twice(files)
    return sorted(files, key=lambda file: (file.collection, file.language, file.split))


def _recognised(path: Path, patterns: Sequence[Pattern]) -> TaskFile | None:
    return next((file for one in patterns if (file := one.match(path)) is not None), None)


def _listed(folder: Path, name: str) -> Iterator[TaskFile]:
    path = folder / name
    if not path.is_file():
        return
    try:
        entries: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        for entry in entries:
            unknown = set(entry) - {"file", "collection", "language", "split", "columns", "labels"}
            if unknown:
                raise ValueError(f"unknown key {min(unknown)}")
            if entry["split"] not in ("train", "dev", "test"):
                raise ValueError(f"the split {entry['split']} is none of train, dev and test")
            file = folder / entry["file"]
            if not file.is_file():
                raise ValueError(f"there is no file {entry['file']}")
            yield TaskFile(
                file,
                str(entry.get("collection") or file.parent.resolve().name),
                # YAML reads the code of Norwegian as a truth value.
                "no" if entry["language"] is False else str(entry["language"]),
                entry["split"],
                tuple(entry.get("columns", ())),
                {str(label): str(meaning) for label, meaning in (entry.get("labels") or {}).items()},
            )
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is no list of sets with file, language and split ({' '.join(str(error).split())})"
        ) from error


def _raise_if_twice(files: Iterable[TaskFile]) -> None:
    seen: dict[tuple[str, str, str], Path] = {}
    for file in files:
        key = (file.collection, file.language, file.split)
        if key in seen:
            raise UserError(
                f"{seen[key]} and {file.path} are both {file.split} sets of {file.unit}; remove one, or give it "
                "another collection in the folder's list"
            )
        seen[key] = file.path
