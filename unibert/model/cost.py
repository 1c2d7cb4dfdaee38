"""Cost of a model before it is built: parameters by part, FLOPs per token, activations saved for the backward pass.

A multiplication with its addition counts as two FLOPs, elementwise operations as none, as in Kaplan et al. 2020 (arXiv
2001.08361, section 2.1): 2 per parameter and token forward, twice that backward. Attention adds 4 H k forward for every
layer, where k is the number of keys that a token attends to (PaLM, arXiv 2204.02311, appendix B, has k = S).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from unibert.model.activation_checkpointing import Checkpointing, checkpointed_layers
from unibert.model.config import AdversaryConfig, DistillationConfig
from unibert.schedules import ever_positive

FORWARD_AND_BACKWARD = 3
"""FLOPs of both passes per FLOP of the forward pass: the backward pass has two products for each."""


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """The sizes of an encoder with its MLM head that determine costs."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    vocab_size: int
    windows: tuple[int | None, ...]
    """Maximum number of keys that a token attends to in each layer; None stands for all of its document."""
    layer_weights: int
    """Elements of the matrices of all layers."""
    head_weights: int
    """Elements of the MLM head's matrices, without those over the vocabulary."""
    gated: bool
    """Whether the feed-forward layer has a gate, a third matrix."""
    attention_dropout: bool = False

    @classmethod
    def modernbert(cls, hidden_size: int, num_layers: int, intermediate_size: int, vocab_size: int) -> EncoderShape:
        """A ModernBERT with global attention in every third layer from the first on, else in a window of 128 tokens."""
        layer = 4 * hidden_size**2 + 3 * hidden_size * intermediate_size
        return cls(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_heads=hidden_size // 64,
            vocab_size=vocab_size,
            windows=tuple(None if index % 3 == 0 else 128 + 1 for index in range(num_layers)),
            layer_weights=num_layers * layer,
            head_weights=hidden_size**2,
            gated=True,
        )

    @classmethod
    def from_model(cls, model: PreTrainedModel) -> EncoderShape:
        """Read the shape of a masked language model, which may be on the meta device."""
        config: PreTrainedConfig = model.config
        weights: Counter[str] = Counter()
        for name, parameter in model.named_parameters():
            # An untied decoder belongs to the head too, but is a matrix over the vocabulary.
            if parameter.ndim == 2 and parameter is not model.get_output_embeddings().weight:
                weights[_part(name, parameter, model)] += parameter.numel()
        layer_types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        reach = {"full_attention": None, "sliding_attention": 2 * (getattr(config, "sliding_window", None) or 0) + 1}
        dropouts = (getattr(config, key, 0.0) for key in ("attention_dropout", "attention_probs_dropout_prob"))
        return cls(
            hidden_size=config.hidden_size,
            intermediate_size=getattr(config, "intermediate_size", None) or config.hidden_dim,
            num_heads=config.num_attention_heads,
            vocab_size=config.vocab_size,
            windows=tuple(reach[layer_type] for layer_type in layer_types),
            layer_weights=weights["layers"],
            head_weights=weights["MLM head"],
            gated=config.model_type == "modernbert",
            attention_dropout=any(dropouts),
        )

    def encoder_flops(self, length: int, *, masks: bool, every: int = 1) -> float:
        """Return the FLOPs per token of a forward pass through the first of every ``every`` layers.

        Args:
            length: tokens per document; a document fills its sequence. Shorter ones cost less without ``masks``.
            masks: whether attention computes all ``length`` scores and masks some, instead of skipping those.
        """
        windows = self.windows[::every]
        keys = sum(length if masks or window is None else min(window, length) for window in windows)
        return 2 * self.layer_weights * len(windows) / len(self.windows) + 4 * self.hidden_size * keys

    def head_flops(self) -> float:
        """Return the FLOPs per masked token of a forward pass: the head's own matrices, and the logits."""
        return 2 * (self.head_weights + self.hidden_size * self.vocab_size)

    def saved_activations(self, length: int, *, masks: bool, checkpointing: Checkpointing | None = None) -> float:
        """Return the number of values per token that the encoder's forward pass saves for its backward pass.

        A ModernBERT layer saves 10 H + 4 I: its input, the outputs of the two norms and the sum between, queries and
        keys before and after rotation, values, attention's output, the gate's four. A BERT layer saves 10 H + 2 I. With
        masks, a layer adds S values of the mask, or with attention dropout three S x S matrices per head. A layer with
        activation checkpointing (`unibert.model.activation_checkpointing.checkpoint_layers`) saves its input alone, a
        ``selective`` one 7 H + 2 I or, of BERT, 7 H + I: its input, the outputs of attention and of the products with
        weights. In its backward pass it has all of them, when those of later layers are gone; so this counts for the
        last layer.
        """
        selective = checkpointing == "selective"
        layer = 10 * self.hidden_size + (4 if self.gated else 2) * self.intermediate_size
        if masks:
            layer += 3 * self.num_heads * length if self.attention_dropout else length
        kept = self.hidden_size
        if selective:
            kept = 7 * self.hidden_size + (2 if self.gated else 1) * self.intermediate_size
        num_layers = len(self.windows)
        checkpointed = checkpointed_layers(num_layers, checkpointing)
        # What a selective layer has kept is not computed again.
        at_once = (layer - (kept if selective else 0)) * (num_layers - 1 in checkpointed)
        return (num_layers - len(checkpointed)) * layer + len(checkpointed) * kept + at_once + 3 * self.hidden_size

    def backward_activations(self) -> float:
        """Return the number of values per token that the backward pass of one layer holds in addition."""
        return 6 * self.hidden_size + (4 if self.gated else 2) * self.intermediate_size


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Count the elements of a `unibert.model.unibert.UniBERT`'s parameters by part; tied parameters count once."""
    masked_lm: PreTrainedModel = model.masked_lm  # type: ignore[assignment]
    parts: Counter[str] = Counter({"embeddings": 0, "layers": 0, "MLM head": 0})
    for name, parameter in model.named_parameters():
        inside = name.removeprefix("masked_lm.")
        part = _part(inside, parameter, masked_lm) if inside != name else _OBJECTIVES[name.split(".")[0]]
        parts[part] += parameter.numel()
    return dict(parts)


_OBJECTIVES = {"discriminator": "adversary", "distiller": "distillation"}


def _part(name: str, parameter: nn.Parameter, masked_lm: PreTrainedModel) -> str:
    """Return the part that a parameter of a masked language model belongs to."""
    base = f"{masked_lm.base_model_prefix}."
    # If head and embeddings are tied, the parameter may have the name of either.
    if parameter is masked_lm.get_input_embeddings().weight or name.startswith(f"{base}embeddings."):
        return "embeddings"
    return "layers" if name.startswith(base) else "MLM head"


def flops_by_part(
    student: EncoderShape,
    *,
    length: int,
    masked: float,
    masks: bool,
    recompute: float,
    adversary: AdversaryConfig | None = None,
    num_languages: int = 0,
    documents_per_token: float = 0.0,
    distillation: DistillationConfig | None = None,
    teacher: EncoderShape | None = None,
    distilled: float = 1.0,
    checkpointing: Checkpointing | None = None,
) -> dict[str, float]:
    """Return the FLOPs per token of a training step, forward and backward, as they are executed, by part.

    Args:
        student, teacher: shapes of both.
        length: tokens per sequence.
        masked: share of the tokens that are masked.
        masks: as in `EncoderShape.encoder_flops`.
        recompute: share of the run in which the loss computes the student's logits twice, 8 N H V instead of 6.
        adversary, distillation: settings of these objectives, None without.
        num_languages: number of the discriminator's classes.
        documents_per_token: the discriminator's samples per token, unless it sees every token.
        distilled: share of the run with a distillation weight above 0.
        checkpointing: layers that are computed twice; ``selective`` computes no product twice.
    """
    hidden, vocab = student.hidden_size, student.vocab_size
    flops = {
        "layers": FORWARD_AND_BACKWARD * 2.0 * student.layer_weights,
        "attention scores": FORWARD_AND_BACKWARD
        * (student.encoder_flops(length, masks=masks) - 2 * student.layer_weights),
        "MLM head": FORWARD_AND_BACKWARD * masked * student.head_flops(),
    }
    if checkpointing is not None and checkpointing != "selective":
        flops["layers, recomputed"] = student.encoder_flops(length, masks=masks, every=checkpointing)
    if recompute:
        flops["MLM head, recomputed"] = recompute * 2 * masked * hidden * vocab
    if adversary is not None:
        width = adversary.intermediate_size or hidden
        samples = 1.0 if adversary.level == "token" else documents_per_token
        # Two gradients pass back through the second matrix: the discriminator's and the reversed one.
        flops["adversary"] = 2 * samples * width * (3 * hidden + 4 * num_languages)
    if distillation is not None and teacher is not None:
        head = teacher.head_flops() if ever_positive(distillation.logits) else 0.0
        flops["teacher"] = distilled * (teacher.encoder_flops(length, masks=masks) + masked * head)
        if ever_positive(distillation.relations):
            # Queries, keys and values, each against itself over the whole sequence.
            flops["relations"] = distilled * 3 * 2 * length * (FORWARD_AND_BACKWARD * hidden + teacher.hidden_size)
        if teacher.hidden_size != hidden:
            flops["projection"] = distilled * _projection_flops(distillation, hidden, teacher.hidden_size)
    return flops


def _projection_flops(config: DistillationConfig, width: int, teacher_width: int) -> int:
    """Return the FLOPs per token that bring hidden states of two widths to one."""
    pairs = len(config.hidden_layers or [()]) if ever_positive(config.hidden) else 0
    passes = FORWARD_AND_BACKWARD if config.projection == "learned" else 1
    return passes * 2 * pairs * width * teacher_width
