"""``unibert study report``: means, changes and tests of a study, as data, text and a page with plots."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from unibert.errors import UserError
from unibert.files import write_atomically, write_json
from unibert.reports.plots import style
from unibert.study import plots
from unibert.study.config import Study
from unibert.study.scores import StudyScores, read_scores
from unibert.study.statistics import arm_summary, compare_arms
from unibert.text import markdown_table

PAPER_TASKS = ("ner", "nli", "qa", "sts")
"""Tasks over which arXiv 2503.12608 averages."""
RESAMPLES = 10_000
_SEED = 0
_DIAGNOSTICS = {
    "probe_linear": "linear probe",
    "probe_mlp": "MLP probe",
    "probe_mlp_centred": "MLP probe, centred",
    "heldout_mlm_loss": "held-out MLM loss",
    "adversary_accuracy": "adversary's accuracy",
    "variance": "variance",
    "mean_cosine": "mean cosine",
    "language_share": "language share",
}
_SHARES = {"probe_linear", "probe_mlp", "probe_mlp_centred", "adversary_accuracy"}


@dataclass(frozen=True)
class Table:
    """A table for the page and for the text."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str


def write_report(study: Study) -> Path:
    """Score the kept predictions, compare the arms, and write ``report.json``, ``report.md`` and ``report.html``.

    ``report.json`` has the scores of every arm, seed and unit, `compare_arms` of every arm against the reference, and
    the diagnostics.

    Returns:
        the page.

    Raises:
        UserError: if something is not scored yet or a file is damaged or of another model.
    """
    scores = read_scores(study)
    content = _content(study, scores)
    tables = [_means(content), *_changes(content), _paper(content), _diagnostics(content)]
    text = "\n\n".join(
        [
            f"# Study {study.output.resolve().name}",
            _design(study),
            *(_markdown(table) for table in tables if table.rows),
        ]
    )
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    figures = {name: _image(figure) for name, figure in _figures(content).items()}
    page = environment.get_template("report.html").render(
        name=study.output.resolve().name, design=_design(study), tables=tables, figures=figures
    )
    folder = study.output / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "report.json", content)
        write_atomically(folder / "report.md", text + "\n")
        write_atomically(folder / "report.html", page)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written ({error.strerror})") from error
    print(text)
    return folder / "report.html"


def _content(study: Study, scores: StudyScores) -> dict[str, Any]:
    others = [name for name in study.arms if name != study.reference]
    arguments: dict[str, Any] = {"reference": study.reference, "seed": _SEED, "resamples": RESAMPLES}
    paper = {name: task for name, task in scores.tasks.items() if name in PAPER_TASKS}
    improvements = {}
    for arm in others if paper else ():
        baseline = study.baseline if study.baseline not in (study.reference, arm) else None
        compared = compare_arms(paper, arm=arm, baseline=baseline, **arguments)
        improvements[arm] = {**compared["average_relative_improvement"], "against": baseline}
    return {
        "format": 1,
        "reference": study.reference,
        "seeds": study.seeds,
        "arms": list(study.arms),
        "tasks": {
            name: {
                "units": list(task.units),
                "chance": scores.chance.get(name),
                "scores": {arm: values.tolist() for arm, values in task.scores.items()},
                "summary": {arm: arm_summary(values, task.units) for arm, values in task.scores.items()},
            }
            for name, task in scores.tasks.items()
        },
        "comparisons": {arm: compare_arms(scores.tasks, arm=arm, **arguments) for arm in others},
        "average_relative_improvement": improvements,
        "diagnostics": scores.diagnostics,
    }


def _design(study: Study) -> str:
    trained = [arm for arm in study.arms.values() if arm.overrides is not None]
    seeds = ", ".join(map(str, study.seeds))
    return (
        f"{len(study.arms)} arms, of which {len(trained)} are pre-trained with seeds {seeds}; tasks "
        f"{', '.join(study.tasks)}; reference {study.reference}. Scores are times 100, means over test sets and seeds."
    )


def _means(content: Mapping[str, Any]) -> Table:
    tasks = content["tasks"]
    rows = []
    for arm in content["arms"]:
        cells = []
        for task in tasks.values():
            summary = task["summary"][arm]
            deviation = "" if summary["deviation"] is None else f" ± {100 * summary['deviation']:.1f}"
            cells.append(f"{100 * summary['mean']:.1f}{deviation}")
        rows.append([arm, *cells])
    chance = [f"{100 * task['chance']:.1f}" if task["chance"] is not None else "" for task in tasks.values()]
    rows.append(["chance", *chance])
    note = "± is the standard deviation over seeds. Chance: the most frequent label, or one sentence of all."
    return Table("Scores", ["arm", *tasks], rows, note)


def _changes(content: Mapping[str, Any]) -> list[Table]:
    tables = []
    for arm, compared in content["comparisons"].items():
        rows = []
        for name, task in compared["tasks"].items():
            absolute, relative = task["absolute"], task["relative"]
            rows.append(
                [
                    name,
                    _signed(absolute["change"]),
                    _interval(absolute),
                    _signed(relative["change"], " %"),
                    *(_p(task[test]["p"]) for test in ("permutation_seeds", "permutation_units")),
                    *(_p(task["permutation_units"]["holm"]), _p(task["wilcoxon"]["p"]), _p(task["wilcoxon"]["holm"])),
                    _number(task["d_z"]),
                    _number(task["rank_biserial"]),
                ]
            )
        note = (
            "Change of the mean and its 95 % interval from the bootstrap over seeds, test sets and, where a score is a "
            "mean over examples, examples. p: permutation over seeds, over test sets with Holm's correction over the "
            "tasks, Wilcoxon over test sets with the same. d: Hedges' over seeds. r: rank-biserial over test sets."
        )
        if compared["note"]:
            note += f" {compared['note']}"
        header = ["task", "change", "interval", "relative", "p seeds", "p sets", "Holm", "Wilcoxon", "Holm", "d", "r"]
        tables.append(Table(f"{arm} against {compared['reference']}", header, rows, note))
    return tables


def _paper(content: Mapping[str, Any]) -> Table:
    rows = []
    for arm, entry in content["average_relative_improvement"].items():
        change = entry["arm"]
        compared = entry["against"] or "no change"
        rows.append(
            [arm, _signed(change["change"], " %"), _interval(change), compared, _number(entry["t"]), _p(entry["p"])]
        )
    note = (
        "Our reading of the figures in the abstract of arXiv 2503.12608 (7.72 % against 1.17 %, p = 0.0181), which "
        "defines neither: the mean over ner, nli, qa and sts of the relative change of the mean score, and a paired "
        "t-test of the relative changes of all test sets. It takes test sets as independent and the trained models as "
        "given, so that its p says less than it seems to."
    )
    header = ["arm", "average relative improvement", "interval", "compared with", "t", "p"]
    return Table(f"Average relative improvement over {content['reference']}", header, rows, note)


def _diagnostics(content: Mapping[str, Any]) -> Table:
    keys = [key for key in _DIAGNOSTICS if any(key in seed for one in content["diagnostics"].values() for seed in one)]
    rows = []
    for arm, seeds in content["diagnostics"].items():
        cells = []
        for key in keys:
            values = [seed[key] for seed in seeds if seed.get(key) is not None]
            cells.append("" if not values else _share(key, fmean(values)))
        rows.append([arm, *cells])
    note = (
        "Means over seeds. Probes: accuracy of a fresh classifier that reads the language off the vectors, %. The "
        "adversary's accuracy is that of its last logged step, %. Variance and mean cosine tell of collapse; language "
        "share is the share of the variance that lies between the languages' means."
    )
    return Table("Diagnostics", ["arm", *(_DIAGNOSTICS[key] for key in keys)], rows if keys else [], note)


def _figures(content: Mapping[str, Any]) -> dict[str, Figure]:
    with style():
        figures = {"Scores by arm": plots.scores(content), "Changes": plots.changes(content)}
        if any("probe_linear" in seed for seeds in content["diagnostics"].values() for seed in seeds):
            figures["Retrieval and language probe"] = plots.retrieval_and_probe(content)
        return figures


def _image(figure: Figure) -> str:
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=160)
    return base64.b64encode(buffer.getvalue()).decode()


def _markdown(table: Table) -> str:
    return "\n".join([f"## {table.title}", "", *markdown_table(table.header, table.rows), "", table.note])


def _signed(value: float | None, unit: str = "") -> str:
    # Adding 0 makes a rounded -0.0 positive.
    return "–" if value is None else f"{round(100 * value, 1) + 0.0:+.1f}{unit}"


def _interval(change: Mapping[str, float | None]) -> str:
    return "–" if change["low"] is None else f"{_signed(change['low'])} … {_signed(change['high'])}"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _share(key: str, value: float) -> str:
    return f"{100 * value:.1f}" if key in _SHARES else f"{value:.3f}"
