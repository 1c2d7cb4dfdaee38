"""The content of a run folder for its report: metrics, configuration, scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from unibert.errors import UserError
from unibert.reports.lineage import Lineage, read_lineage
from unibert.training.metrics_file import Record


@dataclass(frozen=True)
class RunRecords:
    """The parts of a run folder; a missing part is empty or None.

    ``training``, ``heldout``, ``retrieval``, ``left_out``, ``changes``, ``branches``, ``rollbacks`` and
    ``damaged_lines`` are those of `LoggedMetrics`; in a branch, up to its beginning, those of the runs that it branched
    off.
    """

    name: str
    training: list[Record]
    heldout: list[Record]
    retrieval: list[Record]
    left_out: list[Record]
    changes: list[Record]
    branches: list[Record]
    rollbacks: list[Record]
    damaged_lines: int
    config: str | None
    scores: Record | None
    projections: Record | None
    retrieval_over_run: list[Record]
    """Retrieval at each checkpoint that was scored, see `unibert.reports.retrieval_over_run`."""
    lineage: Lineage


def read_run(run_dir: Path) -> RunRecords:
    """Read metrics.jsonl, config.yaml and the files of the folder evaluation, as far as they exist.

    Raises:
        UserError: if the folder does not exist or has none of these files, or if scores or projections are damaged or
            have another format.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run folder")
    metrics, config = run_dir / "metrics.jsonl", run_dir / "config.yaml"
    scores = _read_json(run_dir / "evaluation" / "scores.json")
    if not metrics.is_file() and not config.is_file() and scores is None:
        raise UserError(f"{run_dir} is not a run folder: no metrics.jsonl, config.yaml or evaluation/scores.json in it")
    over_run = _read_json(run_dir / "evaluation" / "retrieval_over_run.json")
    lineage = read_lineage(run_dir)
    logged = lineage.metrics
    return RunRecords(
        name=run_dir.resolve().name,
        training=logged.training,
        heldout=logged.heldout,
        retrieval=logged.retrieval,
        left_out=logged.left_out,
        changes=logged.changes,
        branches=logged.branches,
        rollbacks=logged.rollbacks,
        damaged_lines=logged.damaged_lines,
        config=config.read_text(encoding="utf-8") if config.is_file() else None,
        scores=scores,
        projections=_read_json(run_dir / "evaluation" / "projections.json") if scores else None,
        retrieval_over_run=over_run["points"] if over_run else [],
        lineage=lineage,
    )


def _read_json(path: Path) -> Record | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run `unibert evaluate` again") from None
    if not isinstance(content, dict) or content.get("format") != 1:
        raise UserError(f"{path} has another format than this version reads; run `unibert evaluate` again")
    return content
