"""Geometry of sentence vectors: indicators of collapse, and how far languages lie apart."""

from __future__ import annotations

import numpy as np


def vector_geometry(vectors: np.ndarray, languages: np.ndarray) -> dict[str, float]:
    """Measure the spread of sentence vectors (N, H) with language numbers (N,).

    Returns:
        ``variance``: mean squared distance from the mean vector; a fall towards 0 is collapse.
        ``mean_cosine``: mean cosine of two different sentences; 0 is isotropic, at 1 all point the same way.
        ``participation_ratio``: (Σλ)² / Σλ² over the covariance's eigenvalues λ, the number of directions that the
        variance fills: 1 (a line) to H (a ball).
        ``isoscore``: IsoScore of Rudman et al. (Findings of ACL 2022), 0 (a line) to 1 (a ball). From its definition by
        the covariance's eigenvalues follows (participation_ratio - 1) / (H - 1).
        ``language_share``: share of the variance that is between the languages' means, 0 to 1.
    """
    vectors = vectors.astype(np.float64)
    num_rows = len(vectors)
    deviations = vectors - vectors.mean(axis=0)
    variance = (deviations**2).sum() / num_rows
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    covariance = deviations.T @ deviations / num_rows
    participation_ratio = variance**2 / max((covariance**2).sum(), 1e-300)
    residuals = subtract_language_means(vectors, languages)
    within = (residuals**2).sum() / num_rows
    return {
        "variance": float(variance),
        "mean_cosine": float(((units.sum(axis=0) ** 2).sum() - num_rows) / (num_rows * (num_rows - 1))),
        "participation_ratio": float(participation_ratio),
        "isoscore": float(max(participation_ratio - 1, 0) / max(vectors.shape[1] - 1, 1)),
        "language_share": float(1 - within / variance) if variance > 0 else 0.0,
    }


def principal_plane(vectors: np.ndarray) -> np.ndarray:
    """Project vectors (N, H) onto their first two principal components, (N, 2), with signs fixed for equal plots."""
    deviations = vectors - vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(deviations, full_matrices=False)
    plane = directions[:2]
    largest = np.abs(plane).argmax(axis=1)
    return deviations @ (plane * np.sign(plane[np.arange(2), largest])[:, None]).T


def subtract_language_means(
    vectors: np.ndarray, languages: np.ndarray, mean_rows: np.ndarray | None = None
) -> np.ndarray:
    """Subtract from vectors (N, H) the mean of their language, over ``mean_rows`` (indices) or over all rows."""
    rows = np.arange(len(vectors)) if mean_rows is None else mean_rows
    sums = np.zeros((languages.max() + 1, vectors.shape[1]))
    np.add.at(sums, languages[rows], vectors[rows])
    means = sums / np.maximum(np.bincount(languages[rows], minlength=len(sums)), 1)[:, None]
    return vectors - means[languages]
