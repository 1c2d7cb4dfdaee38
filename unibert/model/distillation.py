"""Distillation losses over hidden states, mean vectors and self-attention relations.

`unibert_kernels` has the loss over logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from unibert.model.architectures import attention_projections
from unibert.model.attention import PackedDocuments


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
    student: tuple[Tensor, Tensor, Tensor], teacher: tuple[Tensor, Tensor, Tensor], document_ids: Tensor, num_heads: int
) -> Tensor:
    """Sum over tokens of KL(teacher ‖ student) of the self-attention relations, MiniLMv2 (arXiv 2012.15828, eq. 5-6).

    A relation is softmax(A Aᵀ / sqrt(d)) with A the queries, keys or values regrouped into ``num_heads`` heads of
    width d; it is taken within each document. The three relations are summed, heads averaged.

    Args:
        student: queries, keys and values of the student, each (B, S, H_s).
        teacher: queries, keys and values of the teacher, each (B, S, H_t).
        document_ids: (B, S) int64, -1 on padding.
        num_heads: must divide H_s and H_t.

    Returns:
        fp32 scalar; divide by the number of tokens for the mean.
    """
    tokens = document_ids >= 0
    other_documents = (document_ids[:, :, None] != document_ids[:, None, :])[:, None]
    total = torch.zeros((), device=document_ids.device)
    for student_projection, teacher_projection in zip(student, teacher, strict=True):
        log_student = _log_relation(student_projection, num_heads, other_documents)
        log_teacher = _log_relation(teacher_projection, num_heads, other_documents)
        divergence = (log_teacher.exp() * (log_teacher - log_student).masked_fill(other_documents, 0.0)).sum(dim=-1)
        # A selection would wait for the device.
        total = total + torch.where(tokens, divergence.mean(dim=1), 0.0).sum()
    return total


def _log_relation(projection: Tensor, num_heads: int, other_documents: Tensor) -> Tensor:
    batch, length, width = projection.shape
    heads = projection.float().view(batch, length, num_heads, width // num_heads).transpose(1, 2)
    scores = heads @ heads.transpose(-1, -2) / (width // num_heads) ** 0.5
    return scores.masked_fill(other_documents, float("-inf")).log_softmax(dim=-1)


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
