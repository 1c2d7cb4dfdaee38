"""The module that is trained: one forward pass computes the three objectives of UniBERT."""

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
from unibert.model.architectures import head_features
from unibert.model.attention import PackedDocuments
from unibert.model.config import AdversaryConfig, DistillationConfig, MLMConfig
from unibert.model.distillation import AttentionProjections, hidden_loss, relation_loss
from unibert.model.encoder import encode
from unibert.model.teacher_input import Prompt, TeacherInput, teacher_input
from unibert.stream import Batch


@dataclass(kw_only=True)
class StepWeights:
    """Weights and counts of a step, with which the losses of its micro-batches become means over the global batch.

    Objectives are summed within a micro-batch and divided by the counts below; ``replicas`` undoes the averaging over
    ranks and micro-batches that the engine does afterwards.
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

    A tuple, because DeepSpeed looks for the loss in tuples, lists and dicts. If it finds none, its ZeRO stages keep the
    last micro-batch's flag on whether gradients are complete, and lose gradients when there are several buckets.
    """

    total: Tensor
    sums: dict[str, Tensor]


class UniBERT(nn.Module):
    """Encoder and MLM head, language discriminator, and access to a frozen teacher.

    Args:
        masked_lm: student, which training exports.
        num_languages: number of languages, the discriminator's classes.
        mlm, adversary, distillation: settings of the objectives; None omits an objective.
        teacher: frozen masked language model with the student's vocabulary, required by ``distillation``; it is not
            among this module's parameters.
        prompt: tokens that the teacher alone reads in every document.
        attention: attention path of student and teacher, see `unibert.model.attention`.

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
        prompt: Prompt | None = None,
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
        self._prompt = prompt
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
        """The teacher, which is not a submodule."""
        return self._teacher[0]

    @staticmethod
    def _check_layer(model: PreTrainedModel, layer: int, key: str) -> None:
        depth = model.config.num_hidden_layers
        if not -depth <= layer <= depth:
            raise UserError(f"{key}: {layer} does not exist in a model of {depth} layers")

    def discriminator_parameters(self) -> set[nn.Parameter]:
        """Return the parameters that have the discriminator's learning rate."""
        return set(self.discriminator.parameters()) if self.adversary is not None else set()

    def parameters_used_outside_their_module(self) -> list[nn.Parameter]:
        """Return the parameters that the fused head reads without calling their module, for ZeRO-3 to gather."""
        decoder = self.masked_lm.get_output_embeddings()
        return [decoder.weight] if decoder.bias is None else [decoder.weight, decoder.bias]

    def forward(self, batch: Batch, weights: StepWeights) -> Objectives:
        """Compute the losses of one micro-batch.

        ``sums`` holds fp32 scalars, each a sum over this micro-batch: ``mlm`` (nats), ``masked``, ``masked_correct``,
        ``adversary`` (nats, class-weighted), ``adversary_weight``, ``classified``, ``classified_correct``, ``logits``,
        ``relations``, ``hidden``, ``tokens``; and ``mlm_by_language`` (L, 3): loss, count and hits.
        """
        documents = PackedDocuments(batch.document_ids, batch.cu_seqlens, batch.max_seqlen)
        hidden_states = encode(
            self.masked_lm,
            batch.input_ids,
            batch.position_ids,
            documents,
            hidden_states=self._needs_all_hidden_states,
            attention=self.attention,
        )
        tokens = (batch.document_ids >= 0).sum().float()
        sums: dict[str, Tensor] = {"tokens": tokens}
        total = self._prediction_losses(batch, documents, hidden_states, weights, sums)
        if self.adversary is not None:
            total = total + self._adversary_loss(batch, hidden_states, weights, sums)
        return Objectives(total * weights.replicas, sums)

    @property
    def _needs_all_hidden_states(self) -> bool:
        adversary, distillation = self.adversary, self.distillation
        return (adversary is not None and adversary.layer != -1) or (
            distillation is not None and distillation.hidden > 0 and distillation.student_layer != -1
        )

    def _prediction_losses(
        self,
        batch: Batch,
        documents: PackedDocuments,
        hidden_states: tuple[Tensor, ...],
        weights: StepWeights,
        sums: dict[str, Tensor],
    ) -> Tensor:
        """Compute the losses of MLM and distillation, which share the masked positions."""
        positions = batch.masked_positions
        decoder = self.masked_lm.get_output_embeddings()
        features = head_features(self.masked_lm, hidden_states[-1].flatten(0, 1)[positions])
        labels = batch.labels.flatten()[positions]
        lang_ids = batch.document_languages[batch.document_ids.flatten()[positions]]
        config, teacher = self.distillation, self.teacher
        if config is None or teacher is None or not weights.distillation:
            return self._mlm_loss(features, labels, lang_ids, weights, sums)
        view = teacher_input(batch, documents, clean=config.teacher_input == "clean", prompt=self._prompt)
        teacher_hidden_states, teacher_features = self._run_teacher(teacher, config, batch, view)
        if config.logits:
            teacher_decoder = teacher.get_output_embeddings()
            output = distillation_loss(
                features,
                decoder.weight,
                teacher_features,
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
        return total + self._hidden_state_losses(
            config, batch, hidden_states, teacher_hidden_states, view, weights, sums
        )

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
    def _run_teacher(
        self, teacher: PreTrainedModel, config: DistillationConfig, batch: Batch, view: TeacherInput
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the teacher's hidden states at the batch's tokens, and its head's features at the masked ones."""
        hidden_states = encode(
            teacher,
            view.input_ids,
            view.position_ids,
            view.documents,
            hidden_states=config.teacher_layer != -1,
            attention=self.attention,
        )
        at_tokens = tuple(map(view.at_batch_tokens, hidden_states))
        return at_tokens, head_features(teacher, at_tokens[-1].flatten(0, 1)[batch.masked_positions])

    def _hidden_state_losses(
        self,
        config: DistillationConfig,
        batch: Batch,
        hidden_states: tuple[Tensor, ...],
        teacher_hidden_states: tuple[Tensor, ...],
        view: TeacherInput,
        weights: StepWeights,
        sums: dict[str, Tensor],
    ) -> Tensor:
        total = hidden_states[-1].new_zeros((), dtype=torch.float32)
        if config.relations:
            queries, keys, values = map(view.at_batch_tokens, self._teacher_projections.take())
            relations = relation_loss(
                self._student_projections.take(),
                (queries, keys, values),
                batch.document_ids,
                self.relation_heads,
            )
            sums["relations"] = relations.detach()
            total = total + config.relations * relations
        if config.hidden:
            student = hidden_states[config.student_layer]
            if hasattr(self, "hidden_projection"):
                student = self.hidden_projection(student)
            hidden = hidden_loss(student, teacher_hidden_states[config.teacher_layer], batch.document_ids)
            sums["hidden"] = hidden.detach()
            total = total + config.hidden * hidden
        return total * (weights.distillation / weights.tokens)

    def _adversary_loss(
        self, batch: Batch, hidden_states: tuple[Tensor, ...], weights: StepWeights, sums: dict[str, Tensor]
    ) -> Tensor:
        assert self.adversary is not None
        output = self.discriminator(
            hidden_states[self.adversary.layer].flatten(0, 1),
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
