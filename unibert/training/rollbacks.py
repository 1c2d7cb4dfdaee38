"""``rollbacks.json``: how often a run has gone back to a checkpoint before a loss spike, and the data that it skips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from unibert.errors import UserError
from unibert.files import write_json
from unibert.stream.skips import Skips

ROLLBACKS_FILE = "rollbacks.json"


class RolledBack(Exception):
    """The run has gone back to a checkpoint, from which it starts again."""


@dataclass(frozen=True)
class Rollback:
    """One rollback. Steps are numbers of optimizer steps done."""

    to_step: int
    """Step of the checkpoint that the run went back to."""
    spike: int
    """First step of the spike."""
    until: int
    """Last step that was undone. The data of the steps after ``to_step`` up to here is skipped."""
    losses: list[float]
    """Losses of the spike, in nats per masked token."""


def read_rollbacks(run_dir: Path) -> list[Rollback]:
    """Return a run's rollbacks in order. Raise UserError if their file is damaged."""
    path = run_dir / ROLLBACKS_FILE
    try:
        return [Rollback(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); restore it from a copy") from error


def write_rollbacks(run_dir: Path, rollbacks: Sequence[Rollback]) -> None:
    """Write a run's rollbacks; no file if there are none. Raise UserError if that fails."""
    path = run_dir / ROLLBACKS_FILE
    try:
        if rollbacks:
            write_json(path, [asdict(one) for one in rollbacks])
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); fix that, and the same command continues"
        ) from error


def skips_of(rollbacks: Sequence[Rollback]) -> Skips:
    """Return the steps whose data each step skips before its own, by index of that step."""
    skips: dict[int, list[tuple[int, int]]] = {}
    for one in rollbacks:
        # What was undone had skipped data of its own.
        undone = [ranges for step, ranges in skips.items() if step >= one.to_step]
        skips = {step: ranges for step, ranges in skips.items() if step < one.to_step}
        skips[one.to_step] = [*(part for ranges in undone for part in ranges), (one.to_step, one.until)]
    return skips
