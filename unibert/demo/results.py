"""The demo's results: every model's scores and held-out loss in one table, and as data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unibert.environment import describe_environment
from unibert.reports.run_records import Record
from unibert.reports.summary import summarise
from unibert.text import ruled_table

_KINDS = ("raw", "centred")


def collect_results(folders: Mapping[str, Path], student: str) -> Record:
    """Return the scores of the demo's models.

    Args:
        folders: folder of each model by its name in the table, with ``evaluation/scores.json`` and, if it was trained,
            ``metrics.jsonl``.
        student: name of the model whose architecture was also scored with fresh weights.

    Returns:
        ``environment``, and of the student ``tokens``, ``layer``, ``languages`` and ``unigram_entropy``; ``models``:
        for each name ``retrieval`` and ``probe``, each ``raw`` and ``centred``, and ``heldout_mlm_loss`` of trained
        models; ``chance`` likewise.

    Raises:
        UserError: if a folder holds no scores.
    """
    summaries = {name: summarise(folder) for name, folder in folders.items()}
    of_student = summaries[student]
    models: Record = {f"{student} with fresh weights": _scores(of_student, "untrained")}
    for name, summary in summaries.items():
        loss = {key: summary[key] for key in ("heldout_mlm_loss",) if key in summary}
        models[name] = _scores(summary, "trained") | loss
    return {
        "environment": describe_environment(),
        **{key: of_student[key] for key in ("tokens", "layer", "languages", "unigram_entropy")},
        "models": models,
        "chance": _scores(of_student, "chance"),
    }


def format_results(results: Record) -> str:
    """Format the results as plain text: a line on what was scored, and a table with one row per model."""
    rows = [_row(name, scores) for name, scores in results["models"].items()]
    header = ["", "raw", "centred", "raw", "centred", "loss, nats"]
    groups = (("", 1), ("translation found", 2), ("language identified", 2), ("held-out MLM", 1))
    return "\n".join(
        [
            f"sentence vectors of layer {results['layer']}, {len(results['languages'])} languages; "
            f"the unigram entropy is {results['unigram_entropy']:.2f} nats",
            "",
            *ruled_table(header, [*rows, _row("chance", results["chance"])], groups),
        ]
    )


def _scores(summary: Record, part: str) -> Record:
    return {question: {kind: summary[question][kind][part] for kind in _KINDS} for question in ("retrieval", "probe")}


def _row(name: str, scores: Record) -> list[str]:
    shares = [f"{100 * scores[question][kind]:.1f} %" for question in ("retrieval", "probe") for kind in _KINDS]
    return [name, *shares, f"{scores['heldout_mlm_loss']:.2f}" if "heldout_mlm_loss" in scores else ""]
