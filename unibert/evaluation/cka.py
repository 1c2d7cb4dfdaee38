"""Debiased linear CKA: do the same sentences lie alike in the spaces of two languages?

CKA compares the similarities of all pairs of sentences within one language with those within the other. It does not
change if either space is shifted, rotated or scaled. With few sentences for its many dimensions, the usual estimate is
large even for unrelated vectors. The debiased one is 0 for these on average: Nguyen, Raghu and Kornblith (arXiv
2010.15327) take the unbiased HSIC of Song et al. (JMLR 13, 2012).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch

MIN_ROWS = 4
"""Number of sentences below which the debiased estimate does not exist."""
_NO_SPREAD = 1e-12
"""Share of the squared variance below which similarities that should be equal differ by float64's rounding alone."""


def debiased_cka(
    vectors: Mapping[str, torch.Tensor], device: torch.device | str = "cpu"
) -> dict[str, list[float | None]]:
    """Compare every two languages of an aligned set at every layer, in float64 and without any (N, N) matrix.

    Args:
        vectors: (num_layers, N, H) of each language; row i has the same meaning in all.
        device: where the products are computed.

    Returns:
        the CKA at each layer for each pair of languages, ``de-en``: 1 for spaces that are equal up to shift, rotation
        and scale, about 0 for unrelated ones, of which it may be slightly negative. None with fewer than `MIN_ROWS`
        sentences, or if all vectors of a language, or all but one, are equal.
    """
    found: dict[str, list[float | None]] = {f"{a}-{b}": [] for a, b in combinations(vectors, 2)}
    num_layers, num_rows = next(iter(vectors.values())).shape[:2]
    for layer in range(num_layers):
        rows = {language: layers[layer].to(device) for language, layers in vectors.items()}
        own = {language: _own_hsic(_centred(one)) if num_rows >= MIN_ROWS else 0.0 for language, one in rows.items()}
        for a, b in combinations(vectors, 2):
            has_spread = own[a] > 0 and own[b] > 0
            found[f"{a}-{b}"].append(
                _hsic(_centred(rows[a]), _centred(rows[b])) / (own[a] * own[b]) ** 0.5 if has_spread else None
            )
    return found


def _centred(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.double()
    return rows - rows.mean(dim=0)


def _hsic(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return N (N - 3) times the unbiased HSIC of the linear kernels of centred vectors (N, H) float64.

    With K and L the kernels (N, N) with their diagonals k and l set to 0, Song et al. write it as
    tr(KL) + 1ᵀK1 · 1ᵀL1 / ((N - 1)(N - 2)) - 2 / (N - 2) · 1ᵀKL1. Shifts do not change it. The rows of centred vectors
    add up to 0, so that K1 = -k, and tr(KL) = ‖XᵀY‖² - k·l.
    """
    num_rows = len(first)
    squares, others = (first**2).sum(dim=1), (second**2).sum(dim=1)
    products = ((first.T @ second) ** 2).sum() - num_rows / (num_rows - 2) * (squares @ others)
    return float(products + squares.sum() * others.sum() / ((num_rows - 1) * (num_rows - 2)))


def _own_hsic(rows: torch.Tensor) -> float:
    """Return what `_hsic` does of vectors with themselves, 0 if all, or all but one, are equal."""
    hsic = _hsic(rows, rows)
    return hsic if hsic > _NO_SPREAD * float((rows**2).sum()) ** 2 else 0.0
