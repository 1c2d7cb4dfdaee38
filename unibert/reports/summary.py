"""The results of one run: as data with the environment, and as one table for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unibert.environment import describe_environment
from unibert.files import write_json
from unibert.reports.run_records import Record, read_run
from unibert.text import ruled_table


def summarise(run_dir: Path) -> Record:
    """Return held-out loss, retrieval and language probe of a run with the environment; missing parts are omitted.

    ``retrieval`` and ``probe`` hold, for raw and centred vectors of the headline layer, ``untrained`` (if it was
    scored), ``trained`` and ``chance``. The probe is the MLP, because centring alone takes a linear one to chance.

    Raises:
        UserError: if the folder is not a run folder.
    """
    run = read_run(run_dir)
    summary: Record = {"run": run.name, "environment": describe_environment()}
    if run.training:
        summary |= {key: run.training[-1][key] for key in ("step", "tokens")}
    if run.heldout:
        keys = ("heldout_mlm_loss", "heldout_mlm_accuracy", "unigram_entropy")
        summary |= {key: run.heldout[-1][key] for key in keys if key in run.heldout[-1]}
    if run.scores:
        layer = str(run.scores["headline_layer"])
        summary |= {"layer": run.scores["headline_layer"], "languages": run.scores["data"]["languages"]}
        parts = {"untrained": run.scores["baseline"], "trained": run.scores["model"]}
        present = {name: part for name, part in parts.items() if part is not None}
        for question, score in (("retrieval", _retrieval), ("probe", _probe)):
            summary[question] = {
                kind: {name: score(part, layer, kind) for name, part in present.items()}
                | {"chance": run.scores["chance"][question]}
                for kind in ("raw", "centred")
            }
    return summary


def write_summary(run_dir: Path) -> Record:
    """Return the run's summary and write it to ``run_dir/report/summary.json``."""
    summary = summarise(run_dir)
    path = run_dir / "report" / "summary.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, summary)
    return summary


def format_summary(summary: Record) -> str:
    """Format the summary as plain text: a line on the loss, and a table of the scores."""
    lines = []
    if "heldout_mlm_loss" in summary:
        loss, unigram = summary["heldout_mlm_loss"], summary["unigram_entropy"]
        lines.append(f"held-out MLM loss {loss:.2f} nats per token; the unigram entropy is {unigram:.2f}")
    if "retrieval" in summary:
        lines += [f"sentence vectors of layer {summary['layer']}, {len(summary['languages'])} languages", ""]
        lines += _table(summary)
    return "\n".join(lines)


def _table(summary: Record) -> list[str]:
    questions = {"retrieval": "translation found, top-1", "probe": "language identified by a fresh probe"}
    columns = list(summary["retrieval"]["raw"])
    rows = [
        [f"{question}, {kind} vectors", *(f"{100 * shares[column]:.1f} %" for column in columns)]
        for key, question in questions.items()
        for kind, shares in summary[key].items()
    ]
    return ruled_table(["", *columns], rows)


def _retrieval(part: dict[str, Any], layer: str, kind: str) -> float:
    return part["retrieval_mean"][layer][kind]


def _probe(part: dict[str, Any], layer: str, kind: str) -> float:
    return part["probe"][layer][kind]["mlp"]["mean"]
