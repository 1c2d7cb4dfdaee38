"""Configuration of the encoder and of its three objectives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from unibert.schedules import Schedule, check_points, dann_ramp, ever_positive, value_at


@dataclass(kw_only=True)
class ModelConfig:
    """The student encoder: any masked language model that transformers builds from a configuration."""

    architecture: str = "modernbert"
    """transformers' ``model_type``: modernbert, bert, roberta, xlm-roberta or distilbert."""

    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the architecture's transformers configuration, as in --model.config.hidden_size 384. Vocabulary size
    and special ids come from the corpus's tokenizer."""

    initialize_from: str | None = None
    """Hugging Face folder or hub id of a model of the same architecture whose weights the student starts from.
    ``config`` then overrides that model's configuration."""

    initialize_layers: list[int] | None = None
    """Layers of that model to take, in order, as in 0,3,6. The student gets as many layers. Default: all."""

    initialize_fit: bool = False
    """Fit these layers to the model that they come from, before the first step and without a gradient. If the run has a
    teacher, it must be that model. With a smaller ``hidden_size`` in ``config``, and perhaps a smaller
    ``intermediate_size``, they are narrowed first, which needs this. For bert, roberta and xlm-roberta."""

    attention: Literal["auto", "sdpa", "flex", "varlen"] = "auto"
    """How student and teacher keep attention within documents: ``sdpa`` uses masks, on any device; ``flex`` uses block
    masks; ``varlen`` needs no masks, on a CPU or on CUDA in bf16 or fp16. ``auto`` uses varlen where it works
    and, on a CPU, pays; else sdpa."""

    def __post_init__(self) -> None:
        if self.initialize_layers is not None and self.initialize_from is None:
            raise ValueError("model.initialize_layers: needs model.initialize_from, the folder to take layers from")
        if self.initialize_fit and self.initialize_from is None:
            raise ValueError("model.initialize_fit: needs model.initialize_from, the model whose layers are fitted")


@dataclass(kw_only=True)
class MLMConfig:
    """Masked language modelling."""

    weight: Schedule = 1.0
    """Weight of the MLM loss in the total loss."""

    label_smoothing: float = 0.0
    """Share of the target's probability spread over the vocabulary."""

    z_loss: float = 0.0
    """Weight of the squared log-normaliser, which keeps logits from drifting (PaLM, arXiv 2204.02311, section 5)."""

    path: Literal["auto", "chunked", "recompute", "exp-store"] = "auto"
    """How the loss is computed: ``chunked`` in plain torch; on CUDA ``exp-store`` is the fastest and ``recompute``
    needs the least memory. ``auto`` chooses by device and shape and prints its choice."""

    workspace_gib: float | None = None
    """Maximum memory, in GiB, for intermediate values of ``exp-store``, and of ``store-teacher`` in distillation.
    Default: a sixteenth of the device's memory."""

    def __post_init__(self) -> None:
        if isinstance(self.weight, list):
            check_points(self.weight, "mlm.weight")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"mlm.label_smoothing: must be at least 0 and below 1, got {self.label_smoothing}")
        if self.workspace_gib is not None and self.workspace_gib <= 0:
            raise ValueError(f"mlm.workspace_gib: must be positive, got {self.workspace_gib}")

    @property
    def max_workspace(self) -> int | None:
        """``workspace_gib`` in bytes, None for the default."""
        return None if self.workspace_gib is None else int(self.workspace_gib * 2**30)


@dataclass(kw_only=True)
class AdversaryConfig:
    """The language discriminator behind the gradient-reversal layer (DANN, arXiv 1505.07818)."""

    level: Literal["mean", "cls", "token"] = "mean"
    """What the discriminator sees: the mean of a document's tokens, its first token, or every token."""

    layer: int = -1
    """Hidden state that the discriminator reads: 0 is the embeddings' output, -1 the last layer."""

    intermediate_size: int | None = None
    """Width of the discriminator's hidden layer. Default: the encoder's hidden size."""

    objective: Literal["reversal", "uniform"] = "reversal"
    """``reversal`` sends the encoder the negated gradient of the discriminator's loss; ``uniform`` the gradient of
    its cross-entropy to the uniform distribution, which is bounded."""

    max_lambda: float = 0.02
    """λ, the factor on the reversed gradient, at the end of the ramp. With 0 the discriminator learns without effect on
    the encoder."""

    ramp: Literal["dann", "linear", "constant"] = "dann"
    """How λ grows to ``max_lambda`` after the warm-up."""

    warmup: float = 0.1
    """Share of the run at the start during which λ is 0."""

    learning_rate: float = 1e-3
    """The discriminator's own peak learning rate. It follows the encoder's schedule."""

    class_balanced: bool = True
    """Weight every language's documents by the inverse of its expected share, so that none is ignored."""

    path: Literal["auto", "chunked", "fused"] = "auto"
    """How the loss is computed: ``chunked`` in plain torch, ``fused`` on CUDA. ``auto`` chooses by device."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"adversary.warmup: must be at least 0 and below 1, got {self.warmup}")
        if self.learning_rate <= 0:
            raise ValueError(f"adversary.learning_rate: must be positive, got {self.learning_rate}")
        if self.max_lambda < 0:
            raise ValueError(f"adversary.max_lambda: must not be negative, got {self.max_lambda}")

    def lambda_at(self, progress: float) -> float:
        """Return λ at ``progress``."""
        if progress < self.warmup:
            return 0.0
        through = (progress - self.warmup) / (1 - self.warmup)
        return self.max_lambda * {"dann": dann_ramp(through), "linear": through, "constant": 1.0}[self.ramp]


LOSSES = ("logits", "relations", "hidden", "pooled")
"""The losses of distillation."""


@dataclass(kw_only=True)
class DistillationConfig:
    """Knowledge distillation from a frozen Hugging Face encoder that shares the corpus's tokenizer."""

    teacher: str | None = None
    """Hugging Face folder or hub id of the teacher. null takes the vectors that ``unibert corpus teach`` has written
    into the corpus, for ``pooled`` alone, and no teacher is in memory."""

    teacher_input: Literal["masked", "clean"] = "masked"
    """What the teacher reads: the student's input with its masks, or the text itself."""

    teacher_prompt: str = ""
    """Text that the teacher, and it alone, reads at the start of every document, as "query:" for e5."""

    weight: Schedule = 1.0
    """Factor on all distillation losses."""

    logits: Schedule = 1.0
    """Weight of KL(teacher ‖ student) of the predictions at the masked positions, times temperature squared."""

    relations: Schedule = 0.0
    """Weight of the self-attention relations (query-query, key-key, value-value; MiniLMv2, arXiv 2012.15828)."""

    hidden: Schedule = 0.0
    """Weight of 1 - cosine between the hidden states of tokens (DistilBERT, arXiv 1910.01108)."""

    pooled: Schedule = 0.0
    """Weight of 1 - cosine between the mean vectors of documents in the last layers, which are the sentence vectors
    that people use. Each piece of a cut document has its own."""

    temperature: float = 2.0
    """Temperature that softens both distributions of the ``logits`` loss."""

    path: Literal["auto", "chunked", "recompute", "store-teacher"] = "auto"
    """How the ``logits`` loss is computed: ``chunked`` in plain torch; on CUDA ``store-teacher`` is the fastest and
    ``recompute`` needs the least memory. ``auto`` chooses by device and shape and prints its choice."""

    teacher_layer: int = -1
    """Teacher layer that ``relations`` and ``hidden`` match, from 1; 0 is the embeddings' output, -1 the last layer."""

    student_layer: int = -1
    """Student layer that ``relations`` and ``hidden`` match, from 1; 0 is the embeddings' output, -1 the last layer."""

    hidden_layers: list[tuple[int, int]] | None = None
    """Pairs of layers, the student's and the teacher's, that ``hidden`` matches, as in [[2, 6], [-1, -1]]. Default: the
    two above."""

    projection: Literal["pca", "learned"] = "pca"
    """How ``hidden`` and ``pooled`` compare states of different widths. ``pca`` brings the teacher's down to the
    student's, less their mean, by a fixed projection. ``learned`` brings the student's up by a trained one, which the
    exported sentence vectors pass through."""

    relation_heads: int | None = None
    """Heads into which queries, keys and values are regrouped. Default: the student's attention heads."""

    def __post_init__(self) -> None:
        for name in ("weight", *LOSSES):
            schedule = getattr(self, name)
            if isinstance(schedule, list):
                check_points(schedule, f"distillation.{name}")
            if min([value for _, value in schedule] if isinstance(schedule, list) else [schedule]) < 0:
                raise ValueError(f"distillation.{name}: must not be negative, got {schedule}")
        if self.temperature <= 0:
            raise ValueError(f"distillation.temperature: must be positive, got {self.temperature}")
        if not any(ever_positive(getattr(self, name)) for name in LOSSES):
            raise ValueError(f"distillation: at least one of {', '.join(LOSSES)} must be positive")
        if self.teacher is None:
            self._check_without_teacher()

    def _check_without_teacher(self) -> None:
        for name in ("logits", "relations", "hidden"):
            if ever_positive(getattr(self, name)):
                raise ValueError(
                    f"distillation.{name}: needs distillation.teacher; name one, or set this to 0, since a corpus "
                    "holds vectors for pooled alone"
                )
        if self.teacher_prompt:
            raise ValueError(
                "distillation.teacher_prompt: there is no distillation.teacher to read it; leave it out, since the "
                "corpus was taught with `unibert corpus teach --prompt`"
            )

    def weights_at(self, progress: float) -> dict[str, float]:
        """Return the weight of each loss at ``progress``."""
        factor = value_at(self.weight, progress)
        return {name: factor * value_at(getattr(self, name), progress) for name in LOSSES}
