"""The frozen teacher beside the student: what it says of a batch, and the losses over hidden states."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unibert.errors import UserError
from unibert.model.architectures import head_features
from unibert.model.attention import PackedDocuments
from unibert.model.config import DistillationConfig
from unibert.model.distillation import AttentionProjections, document_means, hidden_loss, pooled_loss, relation_loss
from unibert.model.encoder import encode
from unibert.model.teacher_input import Prompt, TeacherInput, teacher_input
from unibert.schedules import ever_positive
from unibert.stream import Batch


@dataclass(frozen=True)
class Lesson:
    """The teacher's forward pass over a batch, which all losses share."""

    hidden_states: tuple[Tensor, ...]
    """Embedding output and each layer's output, each (B, T, H_t); only the last if no loss reads others."""
    input: TeacherInput


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
    """Runs the teacher and compares its hidden states with the student's.

    Its parameters are the trained projections, if there are any; the teacher's are not among them.

    Args:
        config: settings of the losses.
        student, teacher: both with the corpus's vocabulary; the teacher frozen.
        prompt: tokens that the teacher alone reads in every document.
        attention: attention path of the teacher, see `unibert.model.attention`.

    Raises:
        UserError: if teacher and student do not fit together.
    """

    def __init__(
        self,
        config: DistillationConfig,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        *,
        prompt: Prompt | None = None,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.config = config
        self.prompt = prompt
        self.attention = attention
        # A tuple hides the teacher from nn.Module, which would train, shard and save it.
        self._teacher = (teacher,)
        if teacher.config.vocab_size != student.config.vocab_size:
            raise UserError(
                f"distillation.teacher: {config.teacher} has a vocabulary of {teacher.config.vocab_size}, the student "
                f"one of {student.config.vocab_size}; train both on one tokenizer"
            )
        self.student_depth, self.teacher_depth = (model.config.num_hidden_layers for model in (student, teacher))
        self.student_width, self.teacher_width = (model.config.hidden_size for model in (student, teacher))
        if ever_positive(config.relations):
            self._prepare_relations(student, teacher)
        self.hidden_pairs = self._resolved_pairs() if ever_positive(config.hidden) else []
        self.pooled_pairs = [(self.student_depth, self.teacher_depth)] if ever_positive(config.pooled) else []
        self.planes: dict[int, PrincipalPlane] = {}
        """The PCA of each layer of `plane_layers`; `set_planes` sets them before the first batch."""
        self.projections = nn.ModuleDict()
        if self.student_width != self.teacher_width:
            self._prepare_projections(sorted({*self.hidden_pairs, *self.pooled_pairs}))

    def _prepare_relations(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
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
        self._teacher_projections = AttentionProjections(teacher, layers[1])

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
                f"{self.config.teacher} has {self.teacher_width}; use learned"
            )

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher, which is not a submodule."""
        return self._teacher[0]

    @property
    def plane_layers(self) -> list[int]:
        """Teacher layers, from 0, whose states come down to the student's width by PCA."""
        if self.student_width == self.teacher_width or self.config.projection != "pca":
            return []
        return sorted({layer for _, layer in [*self.hidden_pairs, *self.pooled_pairs]})

    def set_planes(self, planes: dict[int, PrincipalPlane]) -> None:
        """Set the PCA of each layer of `plane_layers`; every rank must set the same."""
        device = self.teacher.device
        self.planes = {
            layer: PrincipalPlane(plane.mean.to(device), plane.directions.to(device)) for layer, plane in planes.items()
        }

    @property
    def reads_inner_layers(self) -> bool:
        """Whether a loss reads hidden states of the student before the last layer."""
        return any(layer != self.student_depth for layer, _ in self.hidden_pairs)

    @torch.no_grad()
    def teach(self, batch: Batch, documents: PackedDocuments, *, layers: Collection[int] | None = None) -> Lesson:
        """Run the teacher over a batch, for the losses or for other ``layers``, numbers from 0."""
        needed = layers if layers is not None else [layer for _, layer in self.hidden_pairs]
        view = teacher_input(batch, documents, clean=self.config.teacher_input == "clean", prompt=self.prompt)
        states = encode(
            self.teacher,
            view.input_ids,
            view.position_ids,
            view.documents,
            hidden_states=any(layer != self.teacher_depth for layer in needed),
            attention=self.attention,
        )
        return Lesson(states, view)

    @torch.no_grad()
    def masked_features(self, lesson: Lesson, batch: Batch) -> Tensor:
        """Return the features of the teacher's head at the masked positions, (N, H_t)."""
        states = lesson.input.at_batch_tokens(lesson.hidden_states[-1])
        return head_features(self.teacher, states.flatten(0, 1)[batch.masked_positions])

    def hidden_state_losses(
        self, lesson: Lesson, batch: Batch, documents: PackedDocuments, hidden_states: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """Compute the losses over hidden states that the configuration has.

        Args:
            lesson: the teacher's pass over the batch.
            batch, documents: packed sequences, and where their documents lie.
            hidden_states: the student's, embedding output and each layer's, (B, S, H_s); only the last unless
                `reads_inner_layers`.

        Returns:
            fp32 scalars: ``relations`` and ``hidden``, sums over tokens, and ``pooled``, a sum over documents.
        """
        losses = {}
        if ever_positive(self.config.relations):
            queries, keys, values = map(lesson.input.at_batch_tokens, self._teacher_projections.take())
            losses["relations"] = relation_loss(
                self._student_projections.take(), (queries, keys, values), batch.document_ids, self.relation_heads
            )
        if self.hidden_pairs:
            losses["hidden"] = torch.stack(
                [self._hidden_loss(pair, lesson, batch, hidden_states) for pair in self.hidden_pairs]
            ).mean()
        if self.pooled_pairs:
            num_documents = len(batch.document_languages)
            student = document_means(hidden_states[-1], documents, num_documents)
            teacher = document_means(lesson.hidden_states[-1], lesson.input.documents, num_documents)
            losses["pooled"] = pooled_loss(*self._at_one_width(self.pooled_pairs[0], student, teacher))
        return losses

    def _hidden_loss(
        self, pair: tuple[int, int], lesson: Lesson, batch: Batch, hidden_states: tuple[Tensor, ...]
    ) -> Tensor:
        # Counted from the end, since a tuple may hold the last layer alone.
        student = hidden_states[pair[0] - self.student_depth - 1]
        teacher = lesson.input.at_batch_tokens(lesson.hidden_states[pair[1] - self.teacher_depth - 1])
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
