"""A run and those that it branched off, whose metrics make one line over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unibert.training.metrics_file import LoggedMetrics, read_metrics
from unibert.training.parent_file import read_parent_file


@dataclass(frozen=True)
class Segment:
    """The part that one run has in a lineage."""

    run_dir: Path
    first_step: int
    """Step after which the run branched off, 0 for one that began anew."""
    metrics: LoggedMetrics
    """Without the steps that the next run of the lineage has made in its own way."""


@dataclass(frozen=True)
class Lineage:
    """The segments of a run, the oldest first, its own last."""

    segments: Sequence[Segment]
    missing: Path | None = None
    """Run folder of an ancestor that is not there any more; the line begins after it."""

    @property
    def metrics(self) -> LoggedMetrics:
        """All segments in one."""
        parts = [segment.metrics for segment in self.segments]
        damaged_lines = parts[-1].damaged_lines if parts else 0
        return LoggedMetrics([record for part in parts for record in part.records], damaged_lines=damaged_lines)


def read_lineage(run_dir: Path) -> Lineage:
    """Read the metrics of a run and of its ancestors, which may have been moved together with it.

    Raises:
        UserError: if the file that names a parent is damaged.
    """
    path = run_dir / "metrics.jsonl"
    metrics = read_metrics(path) if path.is_file() else LoggedMetrics([], damaged_lines=0)
    parent = read_parent_file(run_dir)
    if parent is None:
        return Lineage([Segment(run_dir.resolve(), 0, metrics)])
    own = Segment(run_dir.resolve(), parent["step"], metrics)
    recorded = Path(parent["parent"])
    folders = (recorded, run_dir.resolve().parent / recorded.name)
    folder = next((one for one in folders if (one / "metrics.jsonl").is_file()), None)
    if folder is None or folder.resolve() == run_dir.resolve():
        return Lineage([own], missing=recorded)
    above = read_lineage(folder)
    segments = [_until(segment, parent["step"]) for segment in above.segments if segment.first_step < parent["step"]]
    return Lineage([*segments, own], above.missing)


def _until(segment: Segment, step: int) -> Segment:
    records = [record for record in segment.metrics.records if int(record["step"]) <= step]
    return Segment(segment.run_dir, segment.first_step, LoggedMetrics(records, segment.metrics.damaged_lines))
