"""What a run folder holds for its report: metrics, configuration, scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unibert.errors import UserError

Record = dict[str, Any]


@dataclass(frozen=True)
class RunRecords:
    """The readable parts of a run folder; a part that is not there is empty or None.

    ``training`` and ``heldout`` are the lines of metrics.jsonl in order of steps. Of a step that was logged twice,
    as after a resume, the later line holds. ``damaged_lines`` counts lines that are no JSON object, such as a last
    line cut short.
    """

    name: str
    training: list[Record]
    heldout: list[Record]
    damaged_lines: int
    config: str | None
    scores: Record | None
    projections: Record | None


def read_run(run_dir: Path) -> RunRecords:
    """Read metrics.jsonl, config.yaml, evaluation/scores.json and evaluation/projections.json as far as they exist.

    Raises:
        UserError: if there is no such folder, if it holds none of these files, or if scores or projections are
            damaged or of another format.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run folder")
    metrics, config = run_dir / "metrics.jsonl", run_dir / "config.yaml"
    scores = _read_json(run_dir / "evaluation" / "scores.json")
    if not metrics.is_file() and not config.is_file() and scores is None:
        raise UserError(f"{run_dir} is not a run folder: no metrics.jsonl, config.yaml or evaluation/scores.json in it")
    training, heldout, damaged = _read_metrics(metrics) if metrics.is_file() else ([], [], 0)
    return RunRecords(
        name=run_dir.resolve().name,
        training=training,
        heldout=heldout,
        damaged_lines=damaged,
        config=config.read_text(encoding="utf-8") if config.is_file() else None,
        scores=scores,
        projections=_read_json(run_dir / "evaluation" / "projections.json") if scores else None,
    )


def _read_metrics(path: Path) -> tuple[list[Record], list[Record], int]:
    training: dict[int, Record] = {}
    heldout: dict[int, Record] = {}
    damaged = 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, TypeError, KeyError):
            damaged += 1
            continue
        (heldout if "heldout_mlm_loss" in record else training)[step] = record
    return [training[step] for step in sorted(training)], [heldout[step] for step in sorted(heldout)], damaged


def _read_json(path: Path) -> Record | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run unibert evaluate again") from None
    if not isinstance(content, dict) or content.get("format") != 1:
        raise UserError(f"{path} is of another format than this version reads; run unibert evaluate again")
    return content
