"""The losses over hidden states, between the student and what its teacher says of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unibert.corpus.manifest import Teaching
from unibert.errors import UserError
from unibert.model.attention import PackedDocuments
from unibert.model.config import DistillationConfig
from unibert.model.distillation import AttentionProjections, document_means, hidden_loss, pooled_loss, relation_loss
from unibert.model.teacher import Lesson, Teacher
from unibert.schedules import ever_positive
from unibert.stream import Batch


@dataclass(frozen=True)
class PrincipalPlane:
    """The directions in which the hidden states of one teacher layer vary most."""

    mean: Tensor
    """(H_t,) fp32."""
    directions: Tensor
    """Orthonormal rows, (H_s, H_t) fp32."""

    def project(self, states: Tensor) -> Tensor:
        """Bring (..., H_t) states down to (..., H_s), less their mean, in fp32."""
        return (states.float() - self.mean) @ self.directions.T


class Distiller(nn.Module):
    """Compares the student's hidden states with those of a teacher, or with the vectors that a corpus keeps of one.

    Its parameters are the trained projections, if there are any; the teacher's are not among them.

    Args:
        config: settings of the losses.
        student: has the corpus's vocabulary.
        teacher: with the same vocabulary; or, for ``pooled`` alone, what the corpus's manifest says of its teacher.

    Raises:
        UserError: if teacher and student do not fit together.
    """

    def __init__(self, config: DistillationConfig, student: PreTrainedModel, teacher: Teacher | Teaching) -> None:
        super().__init__()
        self.config = config
        self.teacher = teacher if isinstance(teacher, Teacher) else None
        """None if the corpus keeps the teacher's vectors."""
        if isinstance(teacher, Teacher) and teacher.model.config.vocab_size != student.config.vocab_size:
            raise UserError(
                f"distillation.teacher: {config.teacher} has a vocabulary of {teacher.model.config.vocab_size}, the "
                f"student one of {student.config.vocab_size}; train both on one tokenizer"
            )
        self.student_depth, self.student_width = student.config.num_hidden_layers, student.config.hidden_size
        self.teacher_depth, self.teacher_width = teacher.depth, teacher.width
        if isinstance(teacher, Teacher) and ever_positive(config.relations):
            self._prepare_relations(student, teacher)
        self.hidden_pairs = self._resolved_pairs() if ever_positive(config.hidden) else []
        self.pooled_pairs = [(self.student_depth, self.teacher_depth)] if ever_positive(config.pooled) else []
        self.planes: dict[int, PrincipalPlane] = {}
        """The PCA of each layer of `plane_layers`; `set_planes` sets them before the first batch."""
        self.projections = nn.ModuleDict()
        if self.student_width != self.teacher_width:
            self._prepare_projections(sorted({*self.hidden_pairs, *self.pooled_pairs}))

    def _prepare_relations(self, student: PreTrainedModel, teacher: Teacher) -> None:
        config = self.config
        layers = (
            resolve_layer(config.student_layer, self.student_depth, "distillation.student_layer"),
            resolve_layer(config.teacher_layer, self.teacher_depth, "distillation.teacher_layer"),
        )
        if 0 in layers:
            raise UserError("distillation.relations: layer 0, the embeddings, has no attention; name a layer from 1 on")
        self.relation_heads = config.relation_heads or student.config.num_attention_heads
        if self.student_width % self.relation_heads or self.teacher_width % self.relation_heads:
            raise UserError(
                f"distillation.relation_heads: {self.relation_heads} must divide the hidden sizes of student "
                f"({self.student_width}) and teacher ({self.teacher_width})"
            )
        self._student_projections = AttentionProjections(student, layers[0])
        self._teacher_projections = AttentionProjections(teacher.model, layers[1])

    def _resolved_pairs(self) -> list[tuple[int, int]]:
        pairs = self.config.hidden_layers or [(self.config.student_layer, self.config.teacher_layer)]
        key = "distillation.hidden_layers" if self.config.hidden_layers else "distillation.{}_layer"
        return [
            (
                resolve_layer(student, self.student_depth, key.format("student")),
                resolve_layer(teacher, self.teacher_depth, key.format("teacher")),
            )
            for student, teacher in pairs
        ]

    def _prepare_projections(self, pairs: list[tuple[int, int]]) -> None:
        if self.config.projection == "learned":
            for pair in pairs:
                self.projections[_name(pair)] = nn.Linear(self.student_width, self.teacher_width)
        elif pairs and self.teacher_width < self.student_width:
            raise UserError(
                f"distillation.projection: pca needs a teacher at least as wide as the student ({self.student_width}), "
                f"{self.config.teacher or 'that of the corpus'} has {self.teacher_width}; use learned"
            )

    @property
    def plane_layers(self) -> list[int]:
        """Teacher layers, from 0, whose states come down to the student's width by PCA."""
        if self.student_width == self.teacher_width or self.config.projection != "pca":
            return []
        return sorted({layer for _, layer in [*self.hidden_pairs, *self.pooled_pairs]})

    def set_planes(self, planes: dict[int, PrincipalPlane], device: torch.device) -> None:
        """Set the PCA of each layer of `plane_layers` for states on ``device``; every rank must set the same."""
        self.planes = {
            layer: PrincipalPlane(plane.mean.to(device), plane.directions.to(device)) for layer, plane in planes.items()
        }

    @property
    def reads_inner_layers(self) -> bool:
        """Whether a loss reads hidden states of the student before the last layer."""
        return any(layer != self.student_depth for layer, _ in self.hidden_pairs)

    def teach(self, batch: Batch, documents: PackedDocuments) -> Lesson | None:
        """Run the teacher over a batch; None if its vectors are in the batch."""
        if self.teacher is None:
            return None
        return self.teacher.read(batch, documents, layers=[layer for _, layer in self.hidden_pairs])

    def hidden_state_losses(
        self, lesson: Lesson | None, batch: Batch, documents: PackedDocuments, hidden_states: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """Compute the losses over hidden states that the configuration has.

        Args:
            lesson: what `teach` returned for the batch.
            batch, documents: packed sequences, and where their documents lie.
            hidden_states: the student's, embedding output and each layer's, (B, S, H_s); only the last unless
                `reads_inner_layers`.

        Returns:
            fp32 scalars: ``relations`` and ``hidden``, sums over tokens, and ``pooled``, a sum over the documents that
            the teacher has read.
        """
        losses = {}
        if lesson is not None and ever_positive(self.config.relations):
            queries, keys, values = map(lesson.input.at_batch_tokens, self._teacher_projections.take())
            losses["relations"] = relation_loss(
                self._student_projections.take(), (queries, keys, values), batch.document_spans, self.relation_heads
            )
        if lesson is not None and self.hidden_pairs:
            losses["hidden"] = torch.stack(
                [self._hidden_loss(pair, lesson, batch, hidden_states) for pair in self.hidden_pairs]
            ).mean()
        if self.pooled_pairs:
            student = document_means(hidden_states[-1], documents, len(batch.document_languages))
            vectors = _vectors(lesson, batch)
            losses["pooled"] = pooled_loss(*self._at_one_width(self.pooled_pairs[0], student, vectors), batch.taught)
        return losses

    def _hidden_loss(
        self, pair: tuple[int, int], lesson: Lesson, batch: Batch, hidden_states: tuple[Tensor, ...]
    ) -> Tensor:
        # Counted from the end, since a tuple may hold the last layer alone.
        student = hidden_states[pair[0] - self.student_depth - 1]
        teacher = lesson.states(pair[1] - self.teacher_depth - 1)
        return hidden_loss(*self._at_one_width(pair, student, teacher), batch.document_ids)

    def _at_one_width(self, pair: tuple[int, int], student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        if self.student_width == self.teacher_width:
            return student, teacher
        if self.config.projection == "pca":
            return student, self.planes[pair[1]].project(teacher)
        projection = cast("nn.Linear", self.projections[_name(pair)])
        return projection(student.to(projection.weight.dtype)), teacher


def resolve_layer(layer: int, depth: int, key: str) -> int:
    """Return the number, from 0, of a hidden state that may be counted from the end; ``key`` is named in the error.

    Raises:
        UserError: if a model of ``depth`` layers has no such layer.
    """
    if not -depth <= layer <= depth:
        raise UserError(f"{key}: {layer} does not exist in a model of {depth} layers")
    return layer if layer >= 0 else depth + 1 + layer


def _name(pair: tuple[int, int]) -> str:
    """Name of the projection between a student's and a teacher's layer."""
    return f"student{pair[0]}_teacher{pair[1]}"


def _vectors(lesson: Lesson | None, batch: Batch) -> Tensor:
    """Return the teacher's mean vector of each document, (D, H_t); 0 for one that it has not read."""
    if lesson is not None:
        return lesson.document_means(len(batch.document_languages))
    assert batch.document_vectors is not None
    # A product with NaN would spoil gradients even where the loss leaves it out.
    return batch.document_vectors.nan_to_num()
