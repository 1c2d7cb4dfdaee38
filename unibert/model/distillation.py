"""Distillation losses over hidden states, mean vectors and self-attention relations.

`unibert_kernels` has the loss over logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from unibert_kernels.precomputed_gradients import attach_gradients, needs_gradient

from unibert.model.architectures import attention_projections
from unibert.model.attention import PackedDocuments

SCORES_AT_ONCE = 1 << 24
"""Scores of relations in memory at a time; each takes 4 bytes in about six tensors."""


class AttentionProjections:
    """Keeps the queries, keys and values that one layer computed in the model's last forward pass.

    Args:
        model: a masked language model.
        layer: number of the layer, counted from 1 as for hidden states, or from the end, where -1 is the last.
    """

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        self._modules = attention_projections(model, layer - 1 if layer > 0 else layer)
        self._outputs: dict[nn.Module, Tensor] = {}
        for module in self._modules:
            module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._outputs[module] = output

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, S, H), and release them from this object."""
        joined = torch.cat([self._outputs.pop(module) for module in self._modules], dim=-1)
        queries, keys, values = joined.chunk(3, dim=-1)
        return queries, keys, values


def relation_loss(
    student: tuple[Tensor, Tensor, Tensor],
    teacher: tuple[Tensor, Tensor, Tensor],
    spans: Sequence[tuple[int, int]],
    num_heads: int,
) -> Tensor:
    """Sum over tokens of KL(teacher ‖ student) of the self-attention relations, MiniLMv2 (arXiv 2012.15828, eq. 5-6).

    A relation is softmax(A Aᵀ / sqrt(d)) with A the queries, keys or values regrouped into ``num_heads`` heads of
    width d; it is taken within each document. The three relations are summed, heads averaged.

    Time grows with the squared length of documents, not of sequences. Documents of about one length are computed
    together. The gradient is computed with the loss, a part of the scores at a time, so that memory does not grow with
    either length: with s the student's scores, ∂KL/∂s = softmax(s) - softmax(t), and s = A Aᵀ / sqrt(d).

    Args:
        student: queries, keys and values of the student, each (B, S, H_s).
        teacher: queries, keys and values of the teacher, each (B, S, H_t); constants.
        spans: first token and end of each document in the flattened B * S tokens.
        num_heads: must divide H_s and H_t.

    Returns:
        fp32 scalar; divide by the number of tokens for the mean.
    """
    device = student[0].device
    total = torch.zeros((), device=device)
    wanted = needs_gradient(*student)
    gradients = [
        torch.zeros(projection.shape, device=device) if wants else None
        for projection, wants in zip(student, wanted, strict=True)
    ]
    with torch.no_grad():
        for group in _groups(spans, device):
            for student_projection, teacher_projection, gradient in zip(student, teacher, gradients, strict=True):
                total += _group_divergence(student_projection, teacher_projection, gradient, group, num_heads)
    return attach_gradients(total, student, tuple(gradients))


class _Group(NamedTuple):
    """Documents of about one length: n documents in L columns."""

    tokens: Tensor
    """Place of each token in the flattened B * S tokens, (n, L); of the document's last token after its end."""
    is_token: Tensor
    """Whether a column is a token of the document, (n, L) bool."""


def _groups(spans: Sequence[tuple[int, int]], device: torch.device) -> list[_Group]:
    by_columns: dict[int, list[tuple[int, int]]] = {}
    for first, end in spans:
        # Two widths per octave: at most half of the columns are empty.
        step = 1 << max(4, (end - first).bit_length() - 2)
        by_columns.setdefault(-(-(end - first) // step) * step, []).append((first, end))
    groups = []
    for num_columns, members in sorted(by_columns.items()):
        firsts, ends = torch.tensor(members).to(device, non_blocking=True)[:, :, None].unbind(dim=1)
        columns = firsts + torch.arange(num_columns, device=device)
        groups.append(_Group(columns.minimum(ends - 1), columns < ends))
    return groups


def _group_divergence(
    student: Tensor, teacher: Tensor, gradient: Tensor | None, group: _Group, num_heads: int
) -> Tensor:
    """Sum of a group's divergences; add to ``gradient``, (B, S, H_s) fp32, what it contributes to that."""
    total = torch.zeros((), device=student.device)
    num_columns = group.tokens.shape[1]
    num_rows = max(1, SCORES_AT_ONCE // (num_heads * num_columns))
    documents_at_once = max(1, num_rows // num_columns)
    for tokens, is_token in zip(
        group.tokens.split(documents_at_once), group.is_token.split(documents_at_once), strict=True
    ):
        own, other = (_heads(projection, tokens, num_heads) for projection in (student, teacher))
        own_gradient = torch.zeros_like(own)
        for first in range(0, num_columns, num_rows):
            rows = slice(first, first + num_rows)
            log_student = _log_relation(own, rows, is_token)
            log_teacher = _log_relation(other, rows, is_token)
            probability = log_teacher.exp()
            difference = (log_teacher - log_student).masked_fill_(~is_token[:, None, None, :], 0.0)
            counted = is_token[:, None, rows, None]
            total += (probability * difference).sum(dim=-1, keepdim=True).mul_(counted).sum() / num_heads
            if gradient is not None:
                to_scores = log_student.exp_().sub_(probability).mul_(counted)
                own_gradient[:, :, rows] += to_scores @ own
                own_gradient += to_scores.transpose(-1, -2) @ own[:, :, rows]
        if gradient is not None:
            own_gradient *= 1 / (num_heads * own.shape[-1] ** 0.5)
            # An empty column adds 0 to the document's last token, so that the order of additions does not matter.
            width = student.shape[-1]
            flat = own_gradient.transpose(1, 2).reshape(-1, width).mul_(is_token.reshape(-1, 1))
            gradient.view(-1, width).index_add_(0, tokens.flatten(), flat)
    return total


def _heads(projection: Tensor, tokens: Tensor, num_heads: int) -> Tensor:
    """Gather documents and split them into heads, (n, heads, L, d) fp32."""
    width = projection.shape[-1]
    gathered = projection.reshape(-1, width)[tokens.flatten()].float()
    return gathered.view(*tokens.shape, num_heads, width // num_heads).transpose(1, 2)


def _log_relation(heads: Tensor, rows: slice, is_token: Tensor) -> Tensor:
    scores = heads[:, :, rows] @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
    return scores.masked_fill_(~is_token[:, None, None, :], float("-inf")).log_softmax(dim=-1)


def hidden_loss(student: Tensor, teacher: Tensor, document_ids: Tensor) -> Tensor:
    """Sum over tokens of 1 - cosine between hidden states, DistilBERT (arXiv 1910.01108, section 3).

    Args:
        student: (B, S, H), projected to the teacher's width if the widths differ.
        teacher: (B, S, H).
        document_ids: (B, S) int64, -1 on padding.

    Returns:
        fp32 scalar; divide by the number of tokens for the mean.
    """
    similarity = F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return torch.where(document_ids >= 0, 1 - similarity, 0.0).sum()


def pooled_loss(student: Tensor, teacher: Tensor, taught: Tensor) -> Tensor:
    """Sum over documents of 1 - cosine between mean vectors.

    Args:
        student, teacher: (D, H), finite.
        taught: (D,) bool; the other documents are left out.

    Returns:
        fp32 scalar; divide by the number of documents that count for the mean.
    """
    distances = 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return torch.where(taught, distances, 0.0).sum()


def document_means(states: Tensor, documents: PackedDocuments, num_documents: int) -> Tensor:
    """Average states over the tokens of each document, in a fixed order.

    Args:
        states: (B, S, H).
        documents: where the documents lie in the sequences.
        num_documents: D; each of the ids 0 to D - 1 occurs.

    Returns:
        (D, H) fp32.
    """
    bounds = documents.cu_seqlens.long()
    # Checks of the bounds would wait for the device.
    means = torch.segment_reduce(states.flatten(0, 1).float(), "mean", offsets=bounds, axis=0, unsafe=True)
    ids = documents.document_ids.flatten()
    owners = ids[bounds[:-1].clamp(max=len(ids) - 1)]
    # Padding goes to a row that is cut off, and so do empty documents.
    rows = torch.where((owners >= 0) & (bounds.diff() > 0), owners, num_documents)
    return means.new_zeros(num_documents + 1, means.shape[1]).index_copy(0, rows, means)[:num_documents]
