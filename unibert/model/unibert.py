"""The module that is trained: one forward pass computes the three objectives of UniBERT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel
from unibert_kernels import (
    DistillationOutput,
    LanguageDiscriminator,
    MLMHeadOutput,
    distillation_loss,
    mlm_head_loss,
)

from unibert.corpus.manifest import Teaching
from unibert.errors import UserError
from unibert.model.architectures import head_features
from unibert.model.attention import PackedDocuments
from unibert.model.config import AdversaryConfig, DistillationConfig, MLMConfig
from unibert.model.distillation import document_means
from unibert.model.distiller import Distiller, resolve_layer
from unibert.model.encoder import encode
from unibert.model.teacher import Teacher
from unibert.model.tied_gradient import TiedWeight
from unibert.schedules import ever_positive
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
    documents: float
    """Those that the teacher has read."""
    adversary_weight: float
    mlm: float = 1.0
    distillation: Mapping[str, float] = field(default_factory=dict)
    """Weight of each loss of distillation, see `unibert.model.config.DistillationConfig.weights_at`; empty without."""
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
        teacher: teacher, or what the corpus's manifest says of it, required by ``distillation``; it is not among this
            module's parameters.
        attention: attention path of the student, see `unibert.model.attention`.

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
        teacher: Teacher | Teaching | None = None,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.masked_lm = masked_lm
        self.num_languages = num_languages
        self.mlm = mlm
        self.adversary = adversary
        self.attention = attention
        if adversary is not None:
            resolve_layer(adversary.layer, masked_lm.config.num_hidden_layers, "adversary.layer")
            self.discriminator = LanguageDiscriminator(
                masked_lm.config.hidden_size,
                num_languages,
                intermediate_size=adversary.intermediate_size or masked_lm.config.hidden_size,
                level=adversary.level,
                objective=adversary.objective,
            )
        self.distiller = None
        if distillation is not None:
            assert teacher is not None
            if ever_positive(distillation.logits) and (mlm.label_smoothing or mlm.z_loss):
                raise UserError(
                    "mlm: label_smoothing and z_loss cannot be combined with distillation.logits; set them to 0"
                )
            self.distiller = Distiller(distillation, masked_lm, teacher)

    def discriminator_parameters(self) -> set[nn.Parameter]:
        """Return the parameters that have the discriminator's learning rate."""
        return set(self.discriminator.parameters()) if self.adversary is not None else set()

    def parameters_used_outside_their_module(self) -> list[nn.Parameter]:
        """Return the parameters that the fused head reads without calling their module, for ZeRO-3 to gather."""
        decoder = self.masked_lm.get_output_embeddings()
        return [decoder.weight] if decoder.bias is None else [decoder.weight, decoder.bias]

    def forward(self, batch: Batch, weights: StepWeights | None) -> Objectives | Tensor:
        """Compute the losses of one micro-batch; without ``weights``, only the mean last hidden state of each document,
        (D, H) fp32.

        ``sums`` holds fp32 scalars, each a sum over this micro-batch: ``mlm`` (nats), ``masked``, ``masked_correct``,
        ``adversary`` (nats, class-weighted), ``adversary_weight``, ``classified``, ``classified_correct``, ``logits``,
        ``relations``, ``hidden``, ``pooled``, ``tokens``, ``documents``; and ``mlm_by_language`` (L, 3): loss, count
        and hits.
        """
        documents = PackedDocuments(batch.document_ids, batch.cu_seqlens, batch.max_seqlen)
        tied_weight = TiedWeight(self.masked_lm)
        with tied_weight.embeds_tokens():
            hidden_states = encode(
                self.masked_lm,
                batch.input_ids,
                batch.position_ids,
                documents,
                hidden_states=weights is not None and self._needs_all_hidden_states,
                attention=self.attention,
            )
        if weights is None:
            return document_means(hidden_states[-1], documents, len(batch.document_languages))
        tokens = (batch.document_ids >= 0).sum().float()
        sums: dict[str, Tensor] = {"tokens": tokens, "documents": batch.taught.sum().float()}
        total = self._prediction_losses(batch, documents, hidden_states, tied_weight.of_head(), weights, sums)
        if self.adversary is not None:
            total = total + self._adversary_loss(batch, hidden_states, weights, sums)
        return Objectives(total * weights.replicas, sums)

    @property
    def _needs_all_hidden_states(self) -> bool:
        adversary, distiller = self.adversary, self.distiller
        return (adversary is not None and adversary.layer != -1) or (
            distiller is not None and distiller.reads_inner_layers
        )

    def _prediction_losses(
        self,
        batch: Batch,
        documents: PackedDocuments,
        hidden_states: tuple[Tensor, ...],
        head_weight: Tensor,
        weights: StepWeights,
        sums: dict[str, Tensor],
    ) -> Tensor:
        """Compute the losses of MLM and distillation, which share the masked positions."""
        positions = batch.masked_positions
        decoder = self.masked_lm.get_output_embeddings()
        features = head_features(self.masked_lm, hidden_states[-1].flatten(0, 1)[positions])
        labels = batch.labels.flatten()[positions]
        lang_ids = batch.document_languages[batch.document_ids.flatten()[positions]]
        distiller = self.distiller
        if distiller is None or not any(weights.distillation.values()):
            return self._mlm_loss(features, head_weight, labels, lang_ids, weights, sums)
        lesson = distiller.teach(batch, documents)
        if weights.distillation["logits"]:
            assert lesson is not None
            assert distiller.teacher is not None
            teacher_decoder = distiller.teacher.model.get_output_embeddings()
            output = distillation_loss(
                features,
                head_weight,
                distiller.teacher.masked_features(lesson, batch),
                teacher_decoder.weight,
                labels,
                decoder.bias,
                teacher_decoder.bias,
                temperature=distiller.config.temperature,
                kl_weight=weights.distillation["logits"],
                ce_weight=weights.mlm,
                lang_ids=lang_ids,
                num_languages=self.num_languages,
                path=distiller.config.path,
                max_workspace=self.mlm.max_workspace,
            )
            total = output.loss * (output.count / weights.masked_tokens)
            sums |= _prediction_sums(output) | {"logits": output.kl.detach() * output.count}
        else:
            total = self._mlm_loss(features, head_weight, labels, lang_ids, weights, sums)
        counts = {"relations": weights.tokens, "hidden": weights.tokens, "pooled": weights.documents}
        for name, loss in distiller.hidden_state_losses(lesson, batch, documents, hidden_states).items():
            sums[name] = loss.detach()
            total = total + loss * (weights.distillation[name] / counts[name])
        return total

    def _mlm_loss(
        self,
        features: Tensor,
        head_weight: Tensor,
        labels: Tensor,
        lang_ids: Tensor,
        weights: StepWeights,
        sums: dict[str, Tensor],
    ) -> Tensor:
        output = mlm_head_loss(
            features,
            head_weight,
            labels,
            self.masked_lm.get_output_embeddings().bias,
            lang_ids=lang_ids,
            num_languages=self.num_languages,
            label_smoothing=self.mlm.label_smoothing,
            z_loss=self.mlm.z_loss,
            path=self.mlm.path,
            max_workspace=self.mlm.max_workspace,
        )
        sums |= _prediction_sums(output)
        return weights.mlm * output.loss * (output.count / weights.masked_tokens)

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
