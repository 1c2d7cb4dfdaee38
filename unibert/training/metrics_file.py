"""``metrics.jsonl``, in which a run logs one JSON object per line."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unibert.files import write_atomically

Record = dict[str, Any]

TIMING_KEYS = ("tokens_per_second", "memory_gib", "mfu", "seconds_per_step", "slowest_rank")
"""Keys that may differ between two identical runs."""

_OTHER_LINES = {"heldout_mlm_loss", "retrieval_raw", "left_out", "changed", "branch_of", "rolled_back"}
"""A key of each kind of line that does not have the losses of a training step."""

_RECENT_LINES = 20


class MetricsFile:
    """The metrics file of a run that is training. Lines are only appended, except when the run resumes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep_until(self, step: int) -> None:
        """Drop lines of later steps and damaged lines, such as a last line cut short by a kill."""
        if not self._path.exists():
            return
        kept = [
            line for line, record in _parsed_lines(self._path) if record is not None and int(record["step"]) <= step
        ]
        write_atomically(self._path, "".join(f"{line}\n" for line in kept))

    def append(self, record: Record) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


@dataclass(frozen=True)
class LoggedMetrics:
    """The content of a metrics file."""

    records: list[Record]
    """The intact lines, in the order in which they were written."""
    damaged_lines: int
    """Number of lines that are not a JSON object with a step, such as a last line cut short."""

    @property
    def training(self) -> list[Record]:
        """Records of training steps, sorted by step. Of a step that was logged twice, the later line counts."""
        return _by_step(record for record in self.records if not _OTHER_LINES & record.keys())

    @property
    def heldout(self) -> list[Record]:
        """Records of held-out evaluations, likewise."""
        return _by_step(record for record in self.records if "heldout_mlm_loss" in record)

    @property
    def retrieval(self) -> list[Record]:
        """Records of retrieval and language probe, likewise."""
        return _by_step(record for record in self.records if "retrieval_raw" in record)

    @property
    def changes(self) -> list[Record]:
        """Records of values that were changed when the run was continued or branched off, likewise."""
        return _by_step(record for record in self.records if record.get("changed"))

    @property
    def branches(self) -> list[Record]:
        """Records with which the metrics of branches begin, see `unibert.training.branch`, likewise."""
        return _by_step(record for record in self.records if "branch_of" in record)

    @property
    def rollbacks(self) -> list[Record]:
        """Records of rollbacks, see `unibert.training.rollbacks`, in order."""
        return [record for record in self.records if "rolled_back" in record]

    @property
    def left_out(self) -> list[Record]:
        """Records of steps that changed no weight, see `unibert.training.bad_steps`, likewise."""
        return _by_step(record for record in self.records if "left_out" in record)


def read_metrics(path: Path) -> LoggedMetrics:
    """Read a metrics file, also while a run writes it."""
    parsed = [record for _, record in _parsed_lines(path)]
    records = [record for record in parsed if record is not None]
    return LoggedMetrics(records, damaged_lines=len(parsed) - len(records))


class GrowingMetrics:
    """The newest metrics of a run that may be running. Each :meth:`read` parses only what is new in the file.

    Args:
        path: the metrics file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._file: int | None = None
        self._position = 0
        self.training: Record = {}
        """The last record of a training step; empty if there is none yet. So are the following."""
        self.heldout: Record = {}
        self.retrieval: Record = {}
        self.losses: list[float] = []
        """The MLM loss, or the loss of runs without, of each training record."""
        self.rates: deque[float] = deque(maxlen=_RECENT_LINES)
        """Tokens per second of the last records of a training step."""

    def read(self) -> None:
        """Take in the complete lines that were added.

        Raises:
            OSError: if the file cannot be read.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            # A run that resumes replaces the file by one without the lines of steps that it repeats.
            if status.st_ino != self._file or status.st_size < self._position:
                self._forget()
                self._file = status.st_ino
            file.seek(self._position)
            # The run may be in the middle of a line.
            added = file.read().rpartition(b"\n")[0]
        self._position += len(added) + 1 if added else 0
        for _, record in _parsed(added.decode("utf-8", errors="replace")):
            if record is not None:
                self._take(record)

    def _take(self, record: Record) -> None:
        if "heldout_mlm_loss" in record:
            self.heldout = record
        elif "retrieval_raw" in record:
            self.retrieval = record
        elif not _OTHER_LINES & record.keys():
            self.training = record
            self.losses.append(record["mlm_loss"] if "mlm_loss" in record else record["loss"])
            self.rates.append(record["tokens_per_second"])


def _parsed_lines(path: Path) -> Iterator[tuple[str, Record | None]]:
    return _parsed(path.read_text(encoding="utf-8", errors="replace"))


def _parsed(text: str) -> Iterator[tuple[str, Record | None]]:
    """Each line that is not blank, with its record, or None if it is damaged."""
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, TypeError, KeyError):
            yield line, None
        else:
            yield line, record


def _by_step(records: Iterable[Record]) -> list[Record]:
    latest = {int(record["step"]): record for record in records}
    return [latest[step] for step in sorted(latest)]
