"""The module that is trained: one forward pass gives the three objectives of UniBERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from unibert_kernels import (
    DistillationOutput,
    LanguageDiscriminator,
    MLMHeadOutput,
    distillation_loss,
    mlm_head_loss,
)

from unibert.errors import UserError
from unibert.model.attention import PackedDocuments
from unibert.model.config import AdversaryConfig, DistillationConfig, MLMConfig
from unibert.model.distillation import AttentionProjections, hidden_loss, relation_loss
from unibert.model.encoder import encode, head_features
from unibert.stream import Batch


@dataclass(kw_only=True)
class StepWeights:
    """What a micro-batch needs to know of its step, so that losses are means over the whole global batch.

    Objectives are summed within a micro-batch and divided by the counts below; ``replicas`` undoes the averaging
    over ranks and micro-batches that the engine does afterwards.
    """

    replicas: int
    masked_tokens: float
    tokens: float
    adversary_weight: float
    mlm: float = 1.0
    distillation: float = 0.0
    reversal_lambda: Tensor
    class_weights: Tensor | None = None


class Objectives(NamedTuple):
    """``total`` is the loss to differentiate; ``sums`` are detached sums and counts for the metrics, see
    :meth:`UniBERT.forward`.

    A tuple, because DeepSpeed looks for the loss in tuples, lists and dicts: one that it does not find leaves its ZeRO
    stages with the last micro-batch's word on whether gradients are complete, and they lose some of several buckets'.
    """

    total: Tensor
    sums: dict[str, Tensor]


class UniBERT(nn.Module):
    """Encoder and MLM head, language discriminator, and the view of a frozen teacher.

    Args:
        masked_lm: the student, which is what training exports.
        num_languages: languages of the corpus, the discriminator's classes.
        mlm, adversary, distillation: the objectives' settings; None leaves an objective out.
        teacher: frozen masked language model with the student's vocabulary, needed by ``distillation``; it stays
            outside this module's parameters.
        attention: the path by which student and teacher keep packed documents apart, see `unibert.model.attention`.

    Raises:
        UserError: if teacher and student do not fit together.
    """

    def __init__(
        self,
        masked_lm: PreTrainedModel,
        num_languages: int,
        *,
        mlm: MLMConfig,
        adversary: AdversaryConfig | None = None,
        distillation: DistillationConfig | None = None,
        teacher: PreTrainedModel | None = None,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.masked_lm = masked_lm
        self.num_languages = num_languages
        self.mlm = mlm
        self.adversary = adversary
        self.distillation = distillation
        self.attention = attention
        # A tuple hides the teacher from nn.Module, which would train, shard and save it.
        self._teacher = (teacher,)
        if adversary is not None:
            self._check_layer(masked_lm, adversary.layer, "adversary.layer")
            self.discriminator = LanguageDiscriminator(
                masked_lm.config.hidden_size,
                num_languages,
                intermediate_size=adversary.intermediate_size or masked_lm.config.hidden_size,
                level=adversary.level,
                objective=adversary.objective,
            )
        if distillation is not None:
            assert teacher is not None
            self._prepare_distillation(distillation, masked_lm, teacher)

    def _prepare_distillation(
        self, config: DistillationConfig, student: PreTrainedModel, teacher: PreTrainedModel
    ) -> None:
        if teacher.config.vocab_size != student.config.vocab_size:
            raise UserError(
                f"distillation.teacher: {config.teacher} has a vocabulary of {teacher.config.vocab_size}, the student "
                f"one of {student.config.vocab_size}; train both on one tokenizer"
            )
        if config.logits and (self.mlm.label_smoothing or self.mlm.z_loss):
            raise UserError(
                "mlm: label_smoothing and z_loss cannot be combined with distillation.logits; set them to 0"
            )
        self._check_layer(teacher, config.teacher_layer, "distillation.teacher_layer")
        self._check_layer(student, config.student_layer, "distillation.student_layer")
        if config.relations and 0 in (config.teacher_layer, config.student_layer):
            raise UserError("distillation.relations: layer 0, the embeddings, has no attention; name a layer from 1 on")
        width, teacher_width = student.config.hidden_size, teacher.config.hidden_size
        if config.relations:
            self.relation_heads = config.relation_heads or student.config.num_attention_heads
            if width % self.relation_heads or teacher_width % self.relation_heads:
                raise UserError(
                    f"distillation.relation_heads: {self.relation_heads} must divide the hidden sizes of student "
                    f"({width}) and teacher ({teacher_width})"
                )
            self._student_projections = AttentionProjections(student, config.student_layer)
            self._teacher_projections = AttentionProjections(teacher, config.teacher_layer)
        if config.hidden and width != teacher_width:
            self.hidden_projection = nn.Linear(width, teacher_width)

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The teacher, which is no submodule."""
        return self._teacher[0]

    @staticmethod
    def _check_layer(model: PreTrainedModel, layer: int, key: str) -> None:
        depth = model.config.num_hidden_layers
        if not -depth <= layer <= depth:
            raise UserError(f"{key}: {layer} does not exist in a model of {depth} layers")

    def discriminator_parameters(self) -> set[nn.Parameter]:
        """The parameters that learn at the discriminator's own rate."""
        return set(self.discriminator.parameters()) if self.adversary is not None else set()

    def parameters_used_outside_their_module(self) -> list[nn.Parameter]:
        """What the fused head reads without calling its module; ZeRO-3 must be told to gather it."""
        decoder = self.masked_lm.get_output_embeddings()
        return [decoder.weight] if decoder.bias is None else [decoder.weight, decoder.bias]

    def forward(self, batch: Batch, weights: StepWeights) -> Objectives:
        """Losses of one micro-batch.

        ``sums`` holds fp32 scalars, each a sum over this micro-batch: ``mlm`` (nats), ``masked``, ``masked_correct``,
        ``adversary`` (nats, class-weighted), ``adversary_weight``, ``classified``, ``classified_correct``, ``logits``,
        ``relations``, ``hidden``, ``tokens``; and ``mlm_by_language`` (L, 3): loss, count and hits.
        """
        documents = PackedDocuments(batch.document_ids, batch.cu_seqlens, batch.max_seqlen)
        states = encode(
            self.masked_lm,
            batch.input_ids,
            batch.position_ids,
            documents,
            hidden_states=self._needs_all_states,
            attention=self.attention,
        )
        tokens = (batch.document_ids >= 0).sum().float()
        sums: dict[str, Tensor] = {"tokens": tokens}
        total = self._prediction_losses(batch, documents, states, weights, sums)
        if self.adversary is not None:
            total = total + self._adversary_loss(batch, states, weights, sums)
        return Objectives(total * weights.replicas, sums)

    @property
    def _needs_all_states(self) -> bool:
        adversary, distillation = self.adversary, self.distillation
        return (adversary is not None and adversary.layer != -1) or (
            distillation is not None and distillation.hidden > 0 and distillation.student_layer != -1
        )

    def _prediction_losses(
        self,
        batch: Batch,
        documents: PackedDocuments,
        states: tuple[Tensor, ...],
        weights: StepWeights,
        sums: dict[str, Tensor],
    ) -> Tensor:
        """MLM and distillation, which share the masked positions."""
        rows = batch.masked_positions
        decoder = self.masked_lm.get_output_embeddings()
        features = head_features(self.masked_lm, states[-1].flatten(0, 1)[rows])
        labels = batch.labels.flatten()[rows]
        lang_ids = batch.document_languages[batch.document_ids.flatten()[rows]]
        config, teacher = self.distillation, self.teacher
        if config is None or teacher is None or not weights.distillation:
            return self._mlm_loss(features, labels, lang_ids, weights, sums)
        teacher_states, taught = self._ask(teacher, config, batch, documents)
        if config.logits:
            teacher_decoder = teacher.get_output_embeddings()
            output = distillation_loss(
                features,
                decoder.weight,
                taught,
                teacher_decoder.weight,
                labels,
                decoder.bias,
                teacher_decoder.bias,
                temperature=config.temperature,
                kl_weight=weights.distillation * config.logits,
                ce_weight=weights.mlm,
                lang_ids=lang_ids,
                num_languages=self.num_languages,
                path=config.path,
                max_workspace=self.mlm.max_workspace,
            )
            total = output.loss * (output.count / weights.masked_tokens)
            sums |= _prediction_sums(output) | {"logits": output.kl.detach() * output.count}
        else:
            total = self._mlm_loss(features, labels, lang_ids, weights, sums)
        return total + self._state_losses(config, batch, states, teacher_states, weights, sums)

    def _mlm_loss(
        self, features: Tensor, labels: Tensor, lang_ids: Tensor, weights: StepWeights, sums: dict[str, Tensor]
    ) -> Tensor:
        decoder = self.masked_lm.get_output_embeddings()
        output = mlm_head_loss(
            features,
            decoder.weight,
            labels,
            decoder.bias,
            lang_ids=lang_ids,
            num_languages=self.num_languages,
            label_smoothing=self.mlm.label_smoothing,
            z_loss=self.mlm.z_loss,
            path=self.mlm.path,
            max_workspace=self.mlm.max_workspace,
        )
        sums |= _prediction_sums(output)
        return weights.mlm * output.loss * (output.count / weights.masked_tokens)

    @torch.no_grad()
    def _ask(
        self, teacher: PreTrainedModel, config: DistillationConfig, batch: Batch, documents: PackedDocuments
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The teacher's hidden states and its head's features of the masked positions."""
        states = encode(
            teacher,
            batch.input_ids,
            batch.position_ids,
            documents,
            hidden_states=config.teacher_layer != -1,
            attention=self.attention,
        )
        return states, head_features(teacher, states[-1].flatten(0, 1)[batch.masked_positions])

    def _state_losses(
        self,
        config: DistillationConfig,
        batch: Batch,
        states: tuple[Tensor, ...],
        teacher_states: tuple[Tensor, ...],
        weights: StepWeights,
        sums: dict[str, Tensor],
    ) -> Tensor:
        total = states[-1].new_zeros((), dtype=torch.float32)
        if config.relations:
            relations = relation_loss(
                self._student_projections.take(),
                self._teacher_projections.take(),
                batch.document_ids,
                self.relation_heads,
            )
            sums["relations"] = relations.detach()
            total = total + config.relations * relations
        if config.hidden:
            student = states[config.student_layer]
            if hasattr(self, "hidden_projection"):
                student = self.hidden_projection(student)
            hidden = hidden_loss(student, teacher_states[config.teacher_layer], batch.document_ids)
            sums["hidden"] = hidden.detach()
            total = total + config.hidden * hidden
        return total * (weights.distillation / weights.tokens)

    def _adversary_loss(
        self, batch: Batch, states: tuple[Tensor, ...], weights: StepWeights, sums: dict[str, Tensor]
    ) -> Tensor:
        assert self.adversary is not None
        output = self.discriminator(
            states[self.adversary.layer].flatten(0, 1),
            batch.document_ids.flatten(),
            batch.document_languages,
            weights.reversal_lambda,
            class_weights=weights.class_weights,
            path=self.adversary.path,
        )
        loss = output.loss * output.weight_sum
        sums |= {
            "adversary": loss.detach(),
            "adversary_weight": output.weight_sum,
            "classified": output.count.float(),
            "classified_correct": output.correct.float(),
        }
        return loss / weights.adversary_weight


def _prediction_sums(output: MLMHeadOutput | DistillationOutput) -> dict[str, Tensor]:
    return {
        "mlm": output.per_language[:, 0].sum(),
        "masked": output.count.float(),
        "masked_correct": output.correct.float(),
        "mlm_by_language": output.per_language,
    }
