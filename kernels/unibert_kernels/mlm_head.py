"""Linear head and softmax cross-entropy over the masked rows.

For a row with hidden state h, label y and logits z = W h + b over V ids, with LSE = log Σ_v exp z_v and p = softmax z:

    loss = LSE - (1 - ε) z_y - (ε / V) Σ_v z_v + ζ LSE²
    ∂loss/∂z = (1 + 2 ζ LSE) p - (1 - ε) onehot(y) - ε / V

ε is label smoothing (Szegedy et al. 2016, arXiv 1512.00567, the same mixture as torch's cross_entropy), ζ the
coefficient of the z-loss (Chowdhery et al. 2022, PaLM, arXiv 2204.02311), which keeps LSE near 0. The row's maximum
is subtracted before exponentiation: with m = max_v z_v, LSE = m + log Σ_v exp(z_v - m). A row is a hit if z_y = m.

The pairs (m, S = Σ_v exp(z_v - m)) of two tiles of the vocabulary merge to m = max(m1, m2) and
S = S1 exp(m1 - m) + S2 exp(m2 - m). z_y comes from the one tile that holds y; Σ_v z_v is needed only if ε > 0. Once LSE
is known, any tile of ∂loss/∂z follows from that tile's logits alone, since p_v = exp(z_v - LSE).

The mean is over the N' counted rows. With dZ the (N, V) matrix of rows ∂loss/∂z, zero in rows not counted:

    ∂/∂hidden = dZ W / N'      ∂/∂W = dZᵀ hidden / N'      ∂/∂b = Σ_n dZ_n / N'

The division by N' (and the product with a loss scale) comes last, on the smaller matrices: dZ itself lies in [-1, 1]
if ζ = 0, which half precision holds well, while dZ / N' would fall below fp16's smallest number. On a CPU, where dZ is
fp32, N' divides the factors of dZ's rows instead: there a pass over ∂/∂W takes a hundredth of a compact model's step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unibert_kernels import operators
from unibert_kernels.arguments import MLMHeadOptions
from unibert_kernels.labels import nan_if_any, replace_invalid
from unibert_kernels.language_sums import check_languages, sums_by_language
from unibert_kernels.linear_head import Head
from unibert_kernels.paths import MLM_HEAD_PATHS, check_path
from unibert_kernels.precomputed_gradients import attach_gradients


class MLMHeadOutput(NamedTuple):
    """Result of `mlm_head_loss`; only ``loss`` is differentiable."""

    loss: Tensor
    """() fp32 (fp64 for fp64 inputs), nats: mean over the counted rows, 0 if there are none."""
    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    """() int64: counted rows."""
    correct: Tensor
    """() int64: counted rows whose label has the largest logit (ties count)."""
    per_language: Tensor
    """(num_languages, 3) fp32: sum of the rows' losses as in ``loss``, count, hits; (0, 3) without lang_ids."""


def mlm_head_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    lang_ids: Tensor | None = None,
    num_languages: int | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    path: str = "auto",
    max_workspace: int | None = None,
) -> MLMHeadOutput:
    """Mean cross-entropy of ``hidden @ weight.T + bias`` against ``labels``; the module's docstring has the formula.

    Products accumulate in fp32 for every dtype of the inputs, and the softmax is computed in fp32 (fp64 for fp64
    inputs). Under autocast on CUDA the operands are rounded to autocast's dtype first, as `torch.nn.functional.linear`
    does; on the CPU autocast changes nothing, since only fp32 products have an fp32 result there. Gradients have the
    dtype of their input. Results are bitwise the same from run to run.

    Args:
        hidden: (N, H) states of the rows.
        weight: (V, H), for instance the tied input embedding.
        labels: (N,) int64 in 0 … V-1, or ``ignore_index`` for a row that does not count. Any other label makes loss
            and gradients NaN.
        bias: (V,).
        lang_ids: (N,) int64 language of each row, with ``num_languages``, for ``per_language``.
        num_languages: rows of ``per_language``.
        ignore_index: the label of rows that do not count.
        label_smoothing: ε, from 0 to 1.
        z_loss: ζ, at least 0.
        path: one of `unibert_kernels.MLM_HEAD_PATHS`; see `unibert_kernels.paths`.
        max_workspace: maximum bytes of exponentials that exp-store keeps at a time; by default a sixteenth of the
            device's memory.

    Raises:
        ValueError: if shapes do not fit, a factor is out of range, or the path is unknown or cannot serve the tensors.
    """
    check_path(path, MLM_HEAD_PATHS)
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"weight: (V, H) {tuple(weight.shape)} does not fit hidden (N, H) {tuple(hidden.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: needs shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    num_rows = len(hidden)
    if labels.shape != (num_rows,):
        raise ValueError(f"labels: needs shape ({num_rows},), one label per row, got {tuple(labels.shape)}")
    check_languages(lang_ids, num_languages, num_rows)
    options = MLMHeadOptions(label_smoothing, z_loss)

    counted = labels != ignore_index
    labels, invalid = replace_invalid(labels, counted, len(weight))
    row_losses, row_hits, early_divisor, gradients = operators.mlm_head(
        Head.of(hidden, weight, bias), labels, counted, options, path, max_workspace
    )
    row_losses = row_losses.masked_fill(invalid, torch.nan)
    count = counted.sum()
    loss = attach_gradients(row_losses.sum() / early_divisor, (hidden, weight, bias), gradients)
    return MLMHeadOutput(
        loss=loss / (count.clamp(min=1) / early_divisor) * nan_if_any(invalid),
        count=count,
        correct=row_hits.sum(),
        per_language=sums_by_language([row_losses, counted, row_hits], lang_ids, num_languages),
    )
