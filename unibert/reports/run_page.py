"""``unibert report``: one page about a run, with figures, numbers and warnings."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from unibert.errors import UserError
from unibert.evaluation.score_table import percent, retrieval_by_language, similarity
from unibert.files import write_atomically
from unibert.reports import plots
from unibert.reports.lineage import Segment
from unibert.reports.page import Finding, Table, Tile, render
from unibert.reports.run_records import Record, RunRecords, read_run
from unibert.text import shortened

_LISTED_STEPS = 5
FINAL_SHARE = 0.1
"""Share of the logged steps whose mean represents the end of a run."""


@dataclass
class Section:
    """A heading with a figure, its caption and its tables, or with the reason why they are missing."""

    title: str
    caption: str = ""
    image: str = ""
    tables: list[Table] = field(default_factory=list)
    missing: str = ""


def write_report(run_dir: Path, beside: Sequence[Path] = ()) -> Path:
    """Write ``report/index.html`` and its figures as PNG files into a run folder.

    A branch is shown with the runs that it branched off as one line. With other runs ``beside`` it, a figure compares
    the losses of all.

    The page embeds its figures, so that it can be sent as one file. It names the parts that the run lacks, such as an
    objective that was off or an evaluation that was not made.

    Returns:
        The path of the page.

    Raises:
        UserError: if the folder is not a run folder, its evaluation is damaged, or the report cannot be written.
    """
    run = read_run(run_dir)
    folder = run_dir / "report"
    try:
        folder.mkdir(exist_ok=True)
        page = folder / "index.html"
        with plots.style():
            sections = [
                *_compared_sections([run, *map(read_run, beside)], folder),
                *_training_sections(run, folder),
                *_evaluation_sections(run, folder),
            ]
        html = render("run_page.html", run=run, tiles=_tiles(run), findings=_findings(run), sections=sections)
        write_atomically(page, html)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written: {error.strerror}") from error
    return page


def _compared_sections(runs: Sequence[RunRecords], folder: Path) -> list[Section]:
    """Return the figure of several runs, in which every part of their lineages is drawn once; none for one run."""
    path = folder / "compared.png"
    if len(runs) == 1:
        path.unlink(missing_ok=True)
        return []
    longest: dict[Path, Segment] = {}
    for segment in (segment for run in runs for segment in run.lineage.segments):
        before = longest.get(segment.run_dir)
        if before is None or len(segment.metrics.records) > len(before.metrics.records):
            longest[segment.run_dir] = segment
    lines = {}
    for run in runs:
        metrics = [segment.metrics for segment in run.lineage.segments]
        for index, segment in enumerate(run.lineage.segments):
            own = longest[segment.run_dir].metrics
            # The last records of the parent join the lines.
            lines[_label(segment, longest)] = (
                [*(metrics[index - 1].training[-1:] if index else []), *own.training],
                [*(metrics[index - 1].heldout[-1:] if index else []), *own.heldout],
            )
    return [
        _section(
            "Compared with other runs",
            "MLM loss over tokens, held out (marks) and in training (pale). Branches leave their parent's line.",
            path,
            "" if any(training for training, _ in lines.values()) else "metrics.jsonl holds no training steps.",
            lambda: plots.compared_losses(lines, [_label(run.lineage.segments[-1], longest) for run in runs]),
        )
    ]


def _label(segment: Segment, all_folders: Collection[Path]) -> str:
    """Return the name of the segment's run folder, with its parent's if there are others of this name."""
    name, folder = segment.run_dir.name, segment.run_dir.parent.name
    return f"{folder}/{name}" if [one.name for one in all_folders].count(name) > 1 else name


def _training_sections(run: RunRecords, folder: Path) -> list[Section]:
    training, heldout = run.training, run.heldout
    branch_steps = [record["step"] for record in run.branches]
    no_metrics = "" if training else "metrics.jsonl holds no training steps."
    no_adversary = "" if _last(training, "adversary_accuracy") else "The language adversary was off in this run."
    losses, entropies, source = _language_losses(run)
    return [
        _section(
            "Losses",
            "Each objective's loss on the training batches. All should fall except the discriminator's, which rises "
            "towards the logarithm of the number of languages as the encoder hides the language.",
            folder / "losses.png",
            no_metrics,
            lambda: plots.mark_steps(plots.loss_curves(training), branch_steps),
            lambda: [_metrics_table(training)],
        ),
        _section(
            "Held-out loss",
            "Below the dashed line the model predicts better than token frequencies alone: it uses context.",
            folder / "heldout.png",
            "" if heldout else "No held-out loss was logged.",
            lambda: plots.mark_steps(plots.heldout_loss(training, heldout), branch_steps),
            lambda: [_heldout_table(heldout)],
        ),
        _section(
            "Loss by language",
            f"MLM loss of each language {source}. If a bar reaches its tick, the model has learnt no more of that "
            "language than its token frequencies.",
            folder / "languages.png",
            "" if losses else "No losses by language were logged.",
            lambda: plots.language_losses(losses, entropies),
            lambda: [_language_table(losses, entropies)],
        ),
        _section(
            "Language discriminator",
            "If accuracy falls towards chance while λ grows, the encoder is winning. The fresh probe below shows "
            "whether the language is gone or only hidden from this discriminator.",
            folder / "discriminator.png",
            no_metrics or no_adversary,
            lambda: plots.mark_steps(plots.discriminator(training), branch_steps),
        ),
        *_over_run_sections(run, folder),
        _section(
            "Training diagnostics",
            "Look for spikes in the gradient norm and drops in throughput.",
            folder / "diagnostics.png",
            no_metrics,
            lambda: plots.mark_steps(plots.training_diagnostics(training), branch_steps),
        ),
    ]


def _over_run_sections(run: RunRecords, folder: Path) -> list[Section]:
    """Return what training measured, what the checkpoints scored, or, if there is neither, how to get it."""
    measured, points = run.retrieval, run.retrieval_over_run
    caption = (
        "Translations found by the last layer's sentence vectors, as they are and centred by language. What centring "
        "adds is lost to the part of the vectors that tells languages apart, against which the adversary works."
    )
    sections = []
    if measured:
        sections.append(
            _section(
                "Retrieval and language probe in training",
                f"{caption} A fresh linear probe reads the language off the raw vectors.",
                folder / "retrieval_in_training.png",
                "",
                lambda: plots.measured_retrieval(measured),
                lambda: [_measured_table(measured)],
            )
        )
    if points or not measured:
        sections.append(
            _section(
                "Retrieval over the run",
                caption,
                folder / "retrieval_over_run.png",
                ""
                if points
                else "Nothing was measured in training (training.retrieval), and no checkpoint was scored; `unibert "
                "report --retrieval DIR` scores them.",
                lambda: plots.retrieval_over_run(points),
                lambda: [_over_run_table(points)],
            )
        )
    return sections


def _evaluation_sections(run: RunRecords, folder: Path) -> list[Section]:
    scores, projections = run.scores, run.projections
    if scores is None:
        title = "Retrieval, language probe, sentence vectors"
        return [Section(title, missing="This run has not been evaluated; `unibert evaluate` writes evaluation/.")]
    layer = scores["headline_layer"]
    no_baseline = (
        "" if scores["baseline"] else " There is no baseline: the untrained model was not scored (--untrained)."
    )
    all_pairs = plots.has_all_pairs(scores)
    return [
        _section(
            f"Retrieval of translations, layer {layer}",
            "How often the nearest sentence of the other language is the translation. A trained model should be well "
            f"above the untrained one. The gain from centring was hidden by offsets between languages.{no_baseline}",
            folder / "retrieval.png",
            "",
            lambda: plots.retrieval_matrices(scores) if all_pairs else plots.retrieval_by_language_dots(scores),
            lambda: [_retrieval_table(scores)],
        ),
        _section(
            "Retrieval at every layer",
            "The shaded layer is the headline layer, which these sentences did not choose: `scores.md` says how it was "
            "chosen. The embeddings (layer 0) show what shared words alone achieve.",
            folder / "retrieval_layers.png",
            "",
            lambda: plots.retrieval_layers(scores),
            lambda: [_layers_table(scores, "retrieval_mean", _retrieval_columns)],
        ),
        _section(
            "Language probe at every layer",
            "A fresh classifier identifies the language of unseen sentences; at chance, the vectors no longer contain "
            "it. Centring takes the linear probe to chance by construction; what the MLP still finds is in the shape "
            "of each language's distribution.",
            folder / "probe.png",
            "",
            lambda: plots.probe_layers(scores),
            lambda: [
                _layers_table(scores, "probe", _probe_columns),
                _layers_table(scores, "geometry", _geometry_columns),
            ],
        ),
        _section(
            "Similarity of the languages' spaces at every layer",
            "Debiased linear CKA: do the same sentences lie alike in the spaces of two languages, however these are "
            "shifted and turned? 0 for unrelated vectors, at most 1. Fresh weights score above 0, since translations "
            "are alike in length.",
            folder / "cka.png",
            "" if "cka_mean" in scores["model"] else "The scores are older than CKA; `unibert evaluate` adds it.",
            lambda: plots.cka_layers(scores),
            lambda: [_layers_table(scores, "cka_mean", _cka_columns)],
        ),
        _section(
            f"Sentence vectors in two dimensions, layer {layer}",
            "One point per sentence on the first two principal components. Separate clusters are languages kept apart; "
            "mixed colours are a shared space.",
            folder / "planes.png",
            "" if projections else "evaluation/projections.json is missing.",
            lambda: plots.sentence_planes(projections or {}),
        ),
    ]


def _section(
    title: str,
    caption: str,
    path: Path,
    missing: str,
    draw: Callable[[], Figure],
    tabulate: Callable[[], list[Table]] = list,
) -> Section:
    """Draw the section's figure and save it at ``path``, or return the section with only the ``missing`` sentence."""
    if missing:
        path.unlink(missing_ok=True)
        return Section(title, missing=missing)
    plots.save(draw(), path)
    image = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    return Section(title, caption, image, tabulate())


def _tiles(run: RunRecords) -> list[Tile]:
    tiles = []
    if run.training:
        last = run.training[-1]
        tiles.append(Tile("steps", f"{last['step']:,}", f"{last['tokens']:,} tokens" if "tokens" in last else ""))
    if run.heldout:
        last = run.heldout[-1]
        entropy = f"unigram entropy {last['unigram_entropy']:.2f}" if "unigram_entropy" in last else ""
        tiles.append(Tile("held-out MLM loss (nats)", f"{last['heldout_mlm_loss']:.3f}", entropy))
        if "heldout_mlm_accuracy" in last:
            tiles.append(Tile("held-out MLM accuracy", f"{percent(last['heldout_mlm_accuracy'])} %"))
    if run.retrieval:
        last = run.retrieval[-1]
        note = f"centred {percent(last['retrieval_centred'])} %, chance {percent(last['retrieval_chance'])} %"
        tiles.append(Tile("retrieval in training, raw", f"{percent(last['retrieval_raw'])} %", note))
    if run.scores:
        model, baseline, chance = run.scores["model"], run.scores["baseline"], run.scores["chance"]
        layer = str(run.scores["headline_layer"])
        figures: list[tuple[str, Callable[[Record], float], float]] = [
            ("retrieval, raw", lambda part: part["retrieval_mean"][layer]["raw"], chance["retrieval"]),
            ("retrieval, centred", lambda part: part["retrieval_mean"][layer]["centred"], chance["retrieval"]),
            ("language probe, raw", lambda part: _strongest_probe(part, layer), chance["probe"]),
        ]
        for label, read, level in figures:
            untrained = f"untrained {percent(read(baseline))} %, " if baseline else ""
            tiles.append(Tile(label, f"{percent(read(model))} %", f"{untrained}chance {percent(level)} %"))
    return tiles


def _findings(run: RunRecords) -> list[Finding]:
    """Return what the numbers show, and warnings about known ways in which they mislead."""
    findings = []
    if any(not math.isfinite(record["loss"]) for record in run.training if record.get("loss") is not None):
        findings.append(Finding("Some training losses are NaN or infinite: the run diverged.", alarm=True))
    for record in run.branches:
        text = (
            f"The run branched off {record['branch_of']['run']} after step {record['step']:,} "
            f"({record['tokens']:,} tokens), at the dotted lines; its stream {record['stream']}."
        )
        findings.append(Finding(text, alarm=False))
    if run.lineage.missing is not None:
        text = f"The run before the branch point is missing: there are no metrics in {run.lineage.missing}."
        findings.append(Finding(text, alarm=False))
    for record in run.changes:
        values = ", ".join(f"{key} {change['from']} → {change['to']}" for key, change in record["changed"].items())
        reason = f" ({record['reason']})" if record["reason"] else ""
        findings.append(Finding(f"Changed from step {record['step'] + 1:,} on: {values}{reason}.", alarm=False))
    for record in run.rollbacks:
        text = (
            f"The loss spiked from step {record['spike']:,} to {record['until']:,}, up to {max(record['losses']):.3g} "
            f"nats: the run went back to step {record['to_step']:,} and skipped the data of the steps in between."
        )
        findings.append(Finding(text, alarm=True))
    if bad := [record for record in run.left_out if record["left_out"] != "loss_scale"]:
        steps = shortened([str(record["step"]) for record in bad], _LISTED_STEPS)
        findings.append(
            Finding(
                f"{len(bad)} steps were left out, since their loss or gradient was not finite: {steps}. metrics.jsonl "
                "names their documents.",
                alarm=True,
            )
        )
    last = run.heldout[-1] if run.heldout else {}
    if "unigram_entropy" in last:
        gain = last["unigram_entropy"] - last["heldout_mlm_loss"]
        text = (
            f"The held-out MLM loss is {gain:.2f} nats below the unigram entropy: the model uses context."
            if gain > 0
            else "The held-out MLM loss is not below the unigram entropy: the model has not learnt to use context."
        )
        findings.append(Finding(text, alarm=gain <= 0))
    accuracy, chance = _final_mean(run.training, "adversary_accuracy"), _final_mean(run.training, "adversary_chance")
    if accuracy is not None and accuracy > 0.95:
        findings.append(
            Finding(
                f"The discriminator still identifies the language of {percent(accuracy)} % at the end: the adversary "
                "has not changed the encoder's states; a larger λ or another layer may.",
                alarm=True,
            )
        )
    if run.retrieval and run.retrieval[-1]["geometry_mean_cosine"] > 0.99:
        findings.append(_collapse("All sentence vectors of the last layer"))
    if run.scores:
        findings += _score_findings(run.scores, accuracy, chance)
    if run.damaged_lines:
        findings.append(
            Finding(f"Damaged lines of metrics.jsonl, not shown on this page: {run.damaged_lines}.", alarm=True)
        )
    return findings


def _score_findings(scores: Record, accuracy: float | None, chance: float | None) -> list[Finding]:
    layer, model, baseline = str(scores["headline_layer"]), scores["model"], scores["baseline"]
    findings = []
    probe, probe_chance = _strongest_probe(model, layer), scores["chance"]["probe"]
    if accuracy is not None and chance is not None and accuracy < 1.5 * chance and probe > 2 * probe_chance:
        findings.append(
            Finding(
                f"The discriminator is near chance, but a fresh probe identifies the language of {percent(probe)} %: "
                "the language is hidden from that discriminator, not gone.",
                alarm=True,
            )
        )
    if baseline:
        for kind in ("raw", "centred"):
            trained, untrained = (part["retrieval_mean"][layer][kind] for part in (model, baseline))
            text = f"Retrieval ({kind}): {percent(trained)} %, untrained model {percent(untrained)} %"
            ending = "." if trained > untrained else ": training has not helped here."
            findings.append(Finding(text + ending, alarm=trained <= untrained))
    if model["geometry"][layer]["mean_cosine"] > 0.99:
        findings.append(_collapse("All sentence vectors"))
    return findings


def _collapse(vectors: str) -> Finding:
    return Finding(
        f"{vectors} have nearly the same direction (mean cosine > 0.99): they may have collapsed.", alarm=True
    )


def _strongest_probe(part: Record, layer: str) -> float:
    """Accuracy of the better classifier on raw vectors: the language is there if either of them finds it."""
    return max(entry["mean"] for entry in part["probe"][layer]["raw"].values())


def _metrics_table(training: Sequence[Record]) -> Table:
    keys = [
        key
        for key in ("loss", "mlm_loss", "mlm_accuracy", "adversary_loss", "adversary_accuracy", "grad_norm")
        if _last(training, key)
    ]
    keys += sorted({key for record in training for key in record if key.startswith("distillation_")})
    rows = []
    for key in keys:
        values = [record[key] for record in training if record.get(key) is not None]
        rows.append([key, f"{values[0]:.4g}", f"{values[-1]:.4g}", f"{_final_mean(training, key):.4g}"])
    return Table("Training metrics", ["metric", "first", "last", "mean of the last tenth"], rows)


def _heldout_table(heldout: Sequence[Record]) -> Table:
    rows = [
        [
            f"{record['step']:,}",
            f"{record['heldout_mlm_loss']:.4f}",
            f"{percent(record['heldout_mlm_accuracy'])} %" if "heldout_mlm_accuracy" in record else "",
            f"{record['unigram_entropy'] - record['heldout_mlm_loss']:+.4f}" if "unigram_entropy" in record else "",
        ]
        for record in _spread(heldout)
    ]
    return Table("Held-out scores", ["step", "loss (nats)", "accuracy", "below unigram entropy (nats)"], rows)


def _language_losses(run: RunRecords) -> tuple[dict[str, float], dict[str, float], str]:
    """Return losses and unigram entropies by language, held out if logged, else of training, and their source."""
    by_language = _last(run.heldout, "heldout_mlm_loss_by_language")
    if by_language:
        return by_language, _last(run.heldout, "unigram_entropy_by_language") or {}, "on held-out text"
    return _last(run.training, "mlm_loss_by_language") or {}, {}, "in the last logged training step"


def _language_table(losses: Mapping[str, float], entropies: Mapping[str, float]) -> Table:
    rows = []
    for language, loss in sorted(losses.items()):
        entropy = entropies.get(language)
        comparison = [f"{entropy:.3f}", f"{entropy - loss:+.3f}"] if entropy is not None else ["", ""]
        rows.append([language, f"{loss:.3f}", *comparison])
    return Table("MLM loss by language (nats)", ["language", "loss", "unigram entropy", "gain"], rows)


def _over_run_table(points: Sequence[Record]) -> Table:
    rows = [
        [f"{point['step']:,}", f"{point['tokens']:,}", percent(point["raw"]), percent(point["centred"])]
        for point in points
    ]
    return Table("Retrieval at the checkpoints (%)", ["step", "tokens", "raw", "centred"], rows)


def _measured_table(measured: Sequence[Record]) -> Table:
    columns = {
        "raw": "retrieval_raw",
        "centred": "retrieval_centred",
        "by margin": "retrieval_margin",
        "linear probe, raw": "probe_linear",
    }
    rows = [
        [
            f"{record['step']:,}",
            f"{record['tokens']:,}",
            *(percent(record[key]) for key in columns.values()),
            f"{record['geometry_variance']:.3g}",
            f"{record['geometry_mean_cosine']:.3f}",
        ]
        for record in _spread(measured)
    ]
    return Table(
        "Retrieval and language probe in training (%)",
        ["step", "tokens", *columns, "variance", "mean cosine"],
        rows,
    )


def _retrieval_table(scores: Record) -> Table:
    layer = str(scores["headline_layer"])
    parts = {name: part for name, part in (("trained", scores["model"]), ("untrained", scores["baseline"])) if part}
    accuracies = {name: retrieval_by_language(part, layer) for name, part in parts.items()}
    kinds = ("raw", "centred")
    return Table(
        "Retrieval by language, mean over its directions (%)",
        ["language", *(f"{name}, {kind}" for name in parts for kind in kinds)],
        [
            [language, *(percent(accuracies[name][language][kind]) for name in parts for kind in kinds)]
            for language in scores["data"]["languages"]
        ],
    )


def _layers_table(scores: Record, key: str, columns: Callable[[Any], dict[str, str]]) -> Table:
    titles = {
        "retrieval_mean": "Retrieval by layer (%)",
        "cka_mean": "CKA by layer, mean over the pairs of languages",
        "probe": "Language probe by layer (balanced accuracy, %)",
        "geometry": "Spread of the sentence vectors by layer",
    }
    parts = {name: part for name, part in (("trained", scores["model"]), ("untrained", scores["baseline"])) if part}
    rows, headers = [], ["layer"]
    for layer in scores["model"][key]:
        cells = {
            f"{name}, {label}": cell
            for name, part in parts.items()
            for label, cell in columns(part[key][layer]).items()
        }
        headers = ["layer", *cells]
        rows.append([layer, *cells.values()])
    return Table(titles[key], headers, rows)


def _retrieval_columns(entry: Record) -> dict[str, str]:
    return {kind: percent(entry[kind]) for kind in ("raw", "centred")}


def _probe_columns(entry: Record) -> dict[str, str]:
    return {
        f"{label} {kind}": f"{percent(entry[kind][name]['mean'])} ± {percent(entry[kind][name]['std'])}"
        for name, label in (("linear", "linear"), ("mlp", "MLP"))
        for kind in ("raw", "centred")
    }


def _cka_columns(value: float | None) -> dict[str, str]:
    return {"CKA": similarity(value)}


def _geometry_columns(entry: Record) -> dict[str, str]:
    return {key.replace("_", " "): f"{value:.3g}" for key, value in entry.items()}


def _spread(records: Sequence[Record]) -> list[Record]:
    """Return about twenty of the records, evenly spread, with the first and the last."""
    stride = math.ceil(len(records) / 20)
    return [records[i] for i in sorted({*range(0, len(records), stride), len(records) - 1})]


def _last(records: Sequence[Record], key: str) -> Any:
    return next((record[key] for record in reversed(records) if record.get(key) is not None), None)


def _final_mean(records: Sequence[Record], key: str) -> float | None:
    values = [record[key] for record in records if record.get(key) is not None]
    final = values[-math.ceil(FINAL_SHARE * len(values)) :] if values else []
    return sum(final) / len(final) if final else None
