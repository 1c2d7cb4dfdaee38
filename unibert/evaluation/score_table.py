"""The scores of an evaluation as Markdown tables that are readable as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unibert.evaluation.layers import how_chosen
from unibert.text import markdown_table

_NOTE = (
    "Retrieval: the nearest neighbour by cosine is the translation, % of sentences, mean over all directions. "
    "Margin: by the cosine less those of the nearest neighbours. Probe: a fresh classifier predicts the language of "
    "held-out sentences, % correct; at chance, the vectors do not show the language. Centred: the mean of each "
    "language's vectors is subtracted. CKA: do the same sentences lie alike in the spaces of two languages? 0 to 1, "
    "debiased, linear, mean over all pairs. Fresh weights score above 0, since translations are alike in length."
)
_LAYER_HEADERS = (
    "layer",
    "retrieval raw",
    "centred",
    "CKA",
    "linear probe raw",
    "centred",
    "MLP probe raw",
    "centred",
    "variance",
    "mean cosine",
    "language share",
)


def format_scores(scores: Mapping[str, Any]) -> str:
    """Return tables of the content of scores.json: headline, every layer, every language."""
    headline, data = str(scores["headline_layer"]), scores["data"]
    evaluated = {"trained": scores["model"], "untrained": scores["baseline"]}
    evaluated = {name: part for name, part in evaluated.items() if part}
    lines = [
        f"# Scores of {scores['model_folder']}",
        "",
        f"{len(data['languages'])} languages, {sum(data['sets'].values())} aligned lines of {data['folder']}. "
        f"The headline layer is {headline} of 0-{scores['num_layers'] - 1}, {how_chosen(scores['layer_chosen_by'])}.",
        "",
        *markdown_table(["", *evaluated, "chance"], _headline_rows(headline, evaluated, scores["chance"])),
        "",
        _NOTE,
    ]
    for name, part in evaluated.items():
        rows = [_layer_row(part, layer, headline) for layer in part["retrieval_mean"]]
        lines += ["", f"## Every layer, {name}", "", *markdown_table(_LAYER_HEADERS, rows)]
    by_language = [retrieval_by_language(part, headline) for part in evaluated.values()]
    lines += [
        "",
        f"## Retrieval by language, layer {headline}",
        "",
        "Mean over all directions from and to the language, %.",
        "",
        *markdown_table(
            ["language", *(f"{name} {kind}" for name in evaluated for kind in ("raw", "centred"))],
            [
                [language, *(percent(means[language][kind]) for means in by_language for kind in ("raw", "centred"))]
                for language in data["languages"]
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def retrieval_by_language(part: Mapping[str, Any], layer: str) -> dict[str, dict[str, float]]:
    """Return each language's mean ``raw`` and ``centred`` accuracy over the directions with it.

    ``part`` is ``model`` or ``baseline`` of scores.json.
    """
    accuracies: dict[str, list[dict[str, float]]] = {}
    for direction, layers in part["retrieval"].items():
        for language in direction.split(">"):
            accuracies.setdefault(language, []).append(layers[layer])
    return {
        language: {kind: sum(entry[kind] for entry in entries) / len(entries) for kind in ("raw", "centred")}
        for language, entries in accuracies.items()
    }


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal, without the sign."""
    return f"{100 * share:.1f}"


def similarity(value: float | None) -> str:
    """Return a similarity such as CKA with three decimals, a dash for one that does not exist."""
    return "–" if value is None else f"{value:.3f}"


def _headline_rows(
    layer: str, evaluated: Mapping[str, Mapping[str, Any]], chance: Mapping[str, float]
) -> list[list[str]]:
    rows = []
    for kind in ("raw", "centred"):
        accuracies = [percent(part["retrieval_mean"][layer][kind]) for part in evaluated.values()]
        rows.append([f"retrieval {kind}", *accuracies, percent(chance["retrieval"])])
    if all("margin" in part["retrieval_mean"][layer] for part in evaluated.values()):
        accuracies = [percent(part["retrieval_mean"][layer]["margin"]) for part in evaluated.values()]
        rows.append(["retrieval by margin", *accuracies, percent(chance["retrieval"])])
    if any(part.get("training_means") for part in evaluated.values()):
        accuracies = [
            percent(part["training_means"]["retrieval_mean"]) if part.get("training_means") else ""
            for part in evaluated.values()
        ]
        rows.append(["retrieval, less means of training text, last layer", *accuracies, percent(chance["retrieval"])])
    rows.append(
        ["CKA of two languages", *(similarity(part["cka_mean"][layer]) for part in evaluated.values()), similarity(0.0)]
    )
    for classifier, label in (("linear", "linear"), ("mlp", "MLP")):
        for kind in ("raw", "centred"):
            accuracies = [percent(part["probe"][layer][kind][classifier]["mean"]) for part in evaluated.values()]
            rows.append([f"{label} language probe {kind}", *accuracies, percent(chance["probe"])])
    return rows


def _layer_row(part: Mapping[str, Any], layer: str, headline: str) -> list[str]:
    retrieval, probe, geometry = (part[key][layer] for key in ("retrieval_mean", "probe", "geometry"))
    return [
        f"{layer} *" if layer == headline else layer,
        *(percent(retrieval[kind]) for kind in ("raw", "centred")),
        similarity(part["cka_mean"][layer]),
        *(percent(probe[kind][classifier]["mean"]) for classifier in ("linear", "mlp") for kind in ("raw", "centred")),
        f"{geometry['variance']:.3g}",
        f"{geometry['mean_cosine']:.3f}",
        f"{geometry['language_share']:.3f}",
    ]
