"""Translation retrieval: is a sentence's nearest neighbour in another language its translation?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

KINDS = ("raw", "centred", "margin")
"""Ways to find a translation, see `find_translations`."""
_NEIGHBOURS = 4


class Found(NamedTuple):
    """What the sentences of one language find in another, by the vectors of one layer."""

    layer: int
    """Number of the layer among those given."""
    direction: str
    """``de>en``: queries in de, candidates in en."""
    rows: dict[str, torch.Tensor]
    """The row that each query finds, (N,) int64 on the CPU, by each of `KINDS`."""


def centre(vectors: torch.Tensor) -> torch.Tensor:
    """Subtract from one language's vectors (..., N, H) their mean over N, which all its sentences share."""
    return vectors - vectors.mean(dim=-2, keepdim=True)


def accuracy(rows: torch.Tensor) -> float:
    """Return the share of queries that find their translation, given the row (N,) that each of them finds."""
    return (rows == torch.arange(len(rows))).double().mean().item()


def find_translations(vectors: Mapping[str, torch.Tensor], device: torch.device | str = "cpu") -> Iterator[Found]:
    """Find the nearest neighbour of every sentence of an aligned set in every other language, at every layer.

    Neighbours are nearest by the cosine of the vectors as they are (``raw``) or less the mean of their language's N
    vectors (``centred``), which needs no labels but the language. ``margin`` subtracts from raw cosines half the mean
    cosine to the k = 4 nearest rows on the other side from either side (Artetxe and Schwenk, arXiv 1811.01136, section
    3, "distance"), so that a row that is near to all others is no one's translation. Of equally near candidates the
    first one counts, so that vectors that are all equal find one translation of N.

    Args:
        vectors: (num_layers, N, H) of each language; row i has the same meaning in all.
        device: where the similarities are computed.
    """
    for layer in range(len(next(iter(vectors.values())))):
        raw = {language: layers[layer].to(device) for language, layers in vectors.items()}
        centred = {language: centre(rows) for language, rows in raw.items()}
        for a, b in combinations(vectors, 2):
            cosines = _cosines(raw[a], raw[b])
            by_kind = {"raw": cosines, "centred": _cosines(centred[a], centred[b]), "margin": _margins(cosines)}
            for direction, dim in ((f"{a}>{b}", 1), (f"{b}>{a}", 0)):
                rows = {kind: similarity.argmax(dim=dim).cpu() for kind, similarity in by_kind.items()}
                yield Found(layer, direction, rows)


def mean_accuracy(
    vectors: Iterable[Mapping[str, torch.Tensor]], device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Return each kind of top-1 accuracy of one layer, the mean over all directions of all sets.

    Args:
        vectors: (N, H) of each language, set by set; row i has the same meaning in all languages of the set.
        device: where the similarities are computed.
    """
    accuracies: dict[str, list[float]] = defaultdict(list)
    for by_language in vectors:
        one_layer = {language: rows[None] for language, rows in by_language.items()}
        for found in find_translations(one_layer, device):
            for kind, rows in found.rows.items():
                accuracies[kind].append(accuracy(rows))
    return {kind: fmean(values) for kind, values in accuracies.items()}


def _cosines(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return normalize(source, dim=-1) @ normalize(target, dim=-1).T


def _margins(cosines: torch.Tensor) -> torch.Tensor:
    neighbours = min(_NEIGHBOURS, len(cosines))
    means = [cosines.topk(neighbours, dim=dim).values.mean(dim=dim, keepdim=True) for dim in (0, 1)]
    return cosines - (means[0] + means[1]) / 2
