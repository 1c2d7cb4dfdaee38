"""Distillation losses over hidden states and self-attention relations (logits are unibert_kernels' business)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from unibert.model.encoder import attention_projections


class AttentionProjections:
    """Keeps the queries, keys and values that one layer computed in the model's last forward pass.

    Args:
        model: a masked language model.
        layer: which layer, counted from 1 as hidden states are, or from the end with -1 the last.
    """

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        self._modules = attention_projections(model, layer - 1 if layer > 0 else layer)
        self._outputs: dict[nn.Module, Tensor] = {}
        for module in self._modules:
            module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._outputs[module] = output

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, S, H), released from this object."""
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
        student: queries, keys, values, each (B, S, H_s).
        teacher: the same of the teacher, (B, S, H_t).
        document_ids: (B, S) int64, -1 on padding.
        num_heads: must divide H_s and H_t.

    Returns:
        fp32 scalar; divide by the number of tokens for the mean.
    """
    tokens = document_ids >= 0
    apart = (document_ids[:, :, None] != document_ids[:, None, :])[:, None]
    total = torch.zeros((), device=document_ids.device)
    for of_student, of_teacher in zip(student, teacher, strict=True):
        log_student = _log_relation(of_student, num_heads, apart)
        log_teacher = _log_relation(of_teacher, num_heads, apart)
        divergence = (log_teacher.exp() * (log_teacher - log_student).masked_fill(apart, 0.0)).sum(dim=-1)
        total = total + divergence.mean(dim=1)[tokens].sum()
    return total


def _log_relation(projection: Tensor, num_heads: int, apart: Tensor) -> Tensor:
    batch, length, width = projection.shape
    heads = projection.float().view(batch, length, num_heads, width // num_heads).transpose(1, 2)
    scores = heads @ heads.transpose(-1, -2) / (width // num_heads) ** 0.5
    return scores.masked_fill(apart, float("-inf")).log_softmax(dim=-1)


def hidden_loss(student: Tensor, teacher: Tensor, document_ids: Tensor) -> Tensor:
    """Sum over tokens of 1 - cosine between hidden states, DistilBERT (arXiv 1910.01108, section 3).

    Args:
        student: (B, S, H), projected to the teacher's width if theirs differ.
        teacher: (B, S, H).
        document_ids: (B, S) int64, -1 on padding.

    Returns:
        fp32 scalar; divide by the number of tokens for the mean.
    """
    similarity = F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return (1 - similarity)[document_ids >= 0].sum()
