"""Semantic textual similarity: do vectors of similar sentences lie close to each other?

``sts.json`` (layers are counted from 0, the embeddings' output)::

    format          1
    model_folder    as given
    weights_sha256  SHA-256 of its weights, hexadecimal; of several files, that of their digests
    layer           the layer whose scores represent the model
    chosen_by       "named", {"language", "split", "rows"} of the set on which this layer was best, or "last layer"
    settings        the options that the scores depend on
    sets            {language: {"file", "rows", "left_out"}}: test sets
    scores          {language: {layer: {"spearman", "pearson"}}} of cosines and human scores; null where all are equal
    mean            {layer: {"spearman", "pearson"}} over the languages

``sts-predictions.jsonl`` has a line for each pair: language, row, human score, and the cosine at that layer. The scores
of that layer can be computed from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.stats import pearsonr, spearmanr
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from unibert.errors import UserError
from unibert.evaluation.embeddings import SentenceEncoder
from unibert.evaluation.layers import ScoredLayers, how_chosen
from unibert.evaluation.sentence_pairs import SentencePairs
from unibert.text import markdown_table


def choose_layers(
    encoder: SentenceEncoder, sets: Sequence[SentencePairs], *, source: str, max_pairs: int
) -> ScoredLayers:
    """Return all layers, represented by the best one of the dev set of ``source``, or by the last if there is none.

    ``sets`` may be empty; ``max_pairs`` is the number of rows to use.
    """
    all_layers = list(range(encoder.num_layers))
    dev = next((pairs for pairs in sets if (pairs.language, pairs.split) == (source, "dev")), None)
    if dev is None:
        return ScoredLayers(all_layers, all_layers[-1], "last layer")
    by_layer = _correlations(_cosines(encoder, dev, max_pairs), dev.scores[:max_pairs])
    best = max(all_layers, key=lambda layer: by_layer[layer]["spearman"] or -1.0)
    return ScoredLayers(all_layers, best, {"language": source, "split": "dev", "rows": min(len(dev), max_pairs)})


def score_pairs(
    encoder: SentenceEncoder,
    sets: Sequence[SentencePairs],
    *,
    layers: ScoredLayers,
    max_pairs: int,
    means: Mapping[str, torch.Tensor] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score the test sets.

    Args:
        encoder: makes the vectors.
        sets: of `read_pairs`.
        layers: layers to score.
        max_pairs: number of rows to use of each set, from its beginning.
        means: (H,) of each language, which is subtracted from its vectors; sets of other languages are left out.

    Returns:
        ``layer``, ``chosen_by``, ``sets``, ``scores`` and ``mean`` of sts.json, and the lines of
        sts-predictions.jsonl.
    """
    scores: dict[str, dict[str, dict[str, float | None]]] = {}
    predictions: list[dict[str, Any]] = []
    tests = [pairs for pairs in sets if pairs.split == "test" and (means is None or pairs.language in means)]
    if not tests:
        raise UserError(
            "center: no test set has a language with a mean; export the model from a corpus with one of them"
        )
    for pairs in tqdm(tests, desc="sts", disable=None, leave=False):
        mean = None if means is None else means[pairs.language]
        cosines, gold = _cosines(encoder, pairs, max_pairs, mean), pairs.scores[:max_pairs]
        by_layer = _correlations(cosines, gold)
        scores[pairs.language] = {str(one): by_layer[one] for one in layers.scored}
        predictions += [
            {"language": pairs.language, "row": row, "score": score, "cosine": cosine}
            for row, (score, cosine) in enumerate(zip(gold, cosines[layers.headline].tolist(), strict=True))
        ]
    described = {
        pairs.language: {"file": pairs.file, "rows": min(len(pairs), max_pairs), "left_out": pairs.left_out}
        for pairs in tests
    }
    averages = {str(one): _mean([entry[str(one)] for entry in scores.values()]) for one in layers.scored}
    chosen = {"layer": layers.headline, "chosen_by": layers.chosen_by}
    return {**chosen, "sets": described, "scores": scores, "mean": averages}, predictions


def _cosines(
    encoder: SentenceEncoder, pairs: SentencePairs, max_pairs: int, mean: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the cosine of each pair, less ``mean`` (H,), at every layer, (num_layers, N) float64."""
    first, second = (encoder.embed(sentences[:max_pairs]).double() for sentences in (pairs.first, pairs.second))
    if mean is not None:
        first, second = first - mean, second - mean
    return cosine_similarity(first, second, dim=-1)


def _correlations(cosines: torch.Tensor, scores: Sequence[float]) -> list[dict[str, float | None]]:
    """Return Spearman's and Pearson's correlation at every layer; None where all cosines or all scores are equal."""
    if len(set(scores)) == 1:
        return [{"spearman": None, "pearson": None} for _ in cosines]
    found: list[dict[str, float | None]] = []
    for row in cosines.numpy():
        if (row == row[0]).all():
            found.append({"spearman": None, "pearson": None})
        else:
            found.append(
                {
                    "spearman": float(spearmanr(row, scores).statistic),
                    "pearson": float(pearsonr(row, scores).statistic),
                }
            )
    return found


def _mean(entries: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    mean: dict[str, float | None] = {}
    for kind in ("spearman", "pearson"):
        values = [entry[kind] for entry in entries]
        known = [value for value in values if value is not None]
        mean[kind] = sum(known) / len(known) if len(known) == len(values) else None
    return mean


def format_sts(content: dict[str, Any]) -> str:
    """Return a table of the content of sts.json."""
    layer = str(content["layer"])
    rows = [
        [language, *(_percent(entry[layer][kind]) for kind in ("spearman", "pearson")), f"{described['rows']:,}"]
        for language, entry, described in (
            (language, content["scores"][language], described) for language, described in content["sets"].items()
        )
    ]
    mean = content["mean"][layer]
    rows.append(["mean", *(_percent(mean[kind]) for kind in ("spearman", "pearson")), ""])
    return (
        "\n".join(
            [
                f"# Semantic textual similarity of {content['model_folder']}",
                "",
                f"Correlation of cosine and human score, times 100. Layer {layer}, "
                f"{how_chosen(content['chosen_by'])}. Nothing is trained.",
                "",
                *markdown_table(["language", "Spearman", "Pearson", "pairs"], rows),
            ]
        )
        + "\n"
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
