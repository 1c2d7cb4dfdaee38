"""Translation retrieval: is a sentence's nearest neighbour in another language its translation?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean

import torch
from torch.nn.functional import normalize

from unibert.evaluation.aligned import AlignedSet
from unibert.evaluation.embeddings import SentenceEncoder

Direction = tuple[str, str]
"""(language of the query, language of the candidates)."""
KINDS = ("raw", "centred", "margin")
"""Ways to find a translation, see `retrieval_accuracy`."""
_NEIGHBOURS = 4


def headline_layer(num_layers: int) -> int:
    """Return the layer whose scores represent the model: the middle one, so that no test data chooses it.

    ``num_layers`` counts the embeddings' output as layer 0, so 12 blocks (13 layers) give layer 6, 7 blocks 4.
    """
    return num_layers // 2


def centre(vectors: torch.Tensor) -> torch.Tensor:
    """Subtract from one language's vectors (..., N, H) their mean over N, which all its sentences share."""
    return vectors - vectors.mean(dim=-2, keepdim=True)


def top1_accuracy(source: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """Return the share of rows whose nearest row on the other side, by cosine, has the same index: (forward, backward).

    ``source`` and ``target`` are (N, H); row i of one is the translation of row i of the other. Of equally near
    candidates the first one counts, so that vectors that are all equal score 1/N.
    """
    return _top1(_cosines(source, target))


def margin_accuracy(source: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """Return what `top1_accuracy` does, by the margin of the cosine over those of both rows' neighbours.

    Artetxe and Schwenk (arXiv 1811.01136, section 3) subtract half the mean cosine to the k = 4 nearest rows on the
    other side from either side ("distance"), so that a row that is near to all others is no one's translation.
    """
    return _top1(_margins(_cosines(source, target)))


def _margins(similarity: torch.Tensor) -> torch.Tensor:
    neighbours = min(_NEIGHBOURS, len(similarity))
    means = [similarity.topk(neighbours, dim=dim).values.mean(dim=dim, keepdim=True) for dim in (0, 1)]
    return similarity - (means[0] + means[1]) / 2


def _cosines(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return normalize(source, dim=-1) @ normalize(target, dim=-1).T


def _top1(similarity: torch.Tensor) -> tuple[float, float]:
    expected = torch.arange(len(similarity), device=similarity.device)
    forward = (similarity.argmax(dim=1) == expected).double().mean()
    backward = (similarity.argmax(dim=0) == expected).double().mean()
    return forward.item(), backward.item()


def retrieval_accuracy(
    vectors: Mapping[str, torch.Tensor], device: torch.device | str = "cpu"
) -> dict[Direction, list[dict[str, float]]]:
    """Compute the top-1 accuracy between every two languages of an aligned set, in both directions, at every layer.

    Args:
        vectors: (num_layers, N, H) of each language; row i has the same meaning in all.
        device: where the similarities are computed.

    Returns:
        one entry per layer for each direction: ``raw``, ``centred`` (each language's mean over its N vectors
        subtracted, which needs no labels but the language) and ``margin`` (`margin_accuracy` of raw vectors). Chance is
        1/N.
    """
    accuracy: dict[Direction, list[dict[str, float]]] = {
        direction: [] for a, b in combinations(vectors, 2) for direction in ((a, b), (b, a))
    }
    num_layers = len(next(iter(vectors.values())))
    for layer in range(num_layers):
        raw = {language: layers[layer].to(device) for language, layers in vectors.items()}
        centred = {language: centre(rows) for language, rows in raw.items()}
        for a, b in combinations(vectors, 2):
            similarity = _cosines(raw[a], raw[b])
            scores = _top1(similarity), top1_accuracy(centred[a], centred[b]), _top1(_margins(similarity))
            for direction, by_kind in zip(((a, b), (b, a)), zip(*scores, strict=True), strict=True):
                accuracy[direction].append(dict(zip(KINDS, by_kind, strict=True)))
    return accuracy


def mean_accuracy(
    encoder: SentenceEncoder, sets: Sequence[AlignedSet], layer: int, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Return each kind of top-1 accuracy of one layer, the mean over all directions of all sets."""
    entries: list[dict[str, float]] = []
    for aligned in sets:
        vectors = {language: encoder.embed(sentences)[[layer]] for language, sentences in aligned.sentences.items()}
        entries += [entry for [entry] in retrieval_accuracy(vectors, device).values()]
    return {kind: fmean(entry[kind] for entry in entries) for kind in KINDS}
