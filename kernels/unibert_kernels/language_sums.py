"""Sums of per-row values by language."""

from __future__ import annotations

import torch
from torch import Tensor


def check_languages(lang_ids: Tensor | None, num_languages: int | None, num_rows: int) -> None:
    """Raise ValueError unless both are None, or ``lang_ids`` has shape (num_rows,) and ``num_languages`` is given."""
    if (lang_ids is None) != (num_languages is None):
        raise ValueError("lang_ids: give lang_ids and num_languages together, or neither")
    if lang_ids is not None and lang_ids.shape != (num_rows,):
        raise ValueError(f"lang_ids: needs shape ({num_rows},), one language per row, got {tuple(lang_ids.shape)}")


def sums_by_language(columns: list[Tensor], lang_ids: Tensor | None, num_languages: int | None) -> Tensor:
    """Sum each column (N,) over the rows of every language: (num_languages, len(columns)) fp32, or (0, …) without ids.

    Computed as a product with a one-hot matrix, since a scattered add has no fixed order on a GPU; in float64, so that
    counts stay exact and TF32 is never used. An id outside 0 … num_languages-1 adds to no row of the result.
    """
    values = torch.stack(columns, dim=1).double()
    if lang_ids is None or num_languages is None:
        return values.new_zeros((0, len(columns)), dtype=torch.float32)
    members = torch.arange(num_languages, device=lang_ids.device)[:, None] == lang_ids
    return (members.double() @ values).float()
