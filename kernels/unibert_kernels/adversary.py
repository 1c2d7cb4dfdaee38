"""Language discriminator behind gradient reversal: pool, Linear, GELU, Linear, softmax cross-entropy over languages.

After Ganin et al. 2016 (DANN, arXiv 1505.07818): the discriminator minimises one loss, and the encoder maximises it.
With tokens t of documents d, languages y, class weights ω (1 without), the samples x_i are

    mean     x_d = Σ_{t in d} h_t / |d|
    cls      x_d = h of the document's first token
    token    x_t = h_t, with the language of its document

and, with the exact (erf) GELU,

    a = W1 x + b1      z = W2 gelu(a) + b2      p = softmax z
    loss = Σ_i ω_{y_i} (LSE(z_i) - z_{i, y_i}) / Ω            Ω = Σ_i ω_{y_i}

In the backward pass the discriminator's parameters get the plain gradient of the loss, from

    g_i = ω_{y_i} (p_i - onehot(y_i)) / Ω = ∂loss/∂z_i

The encoder gets, through the same layers, the gradient of another objective, multiplied by λ:

    reversal    -λ g_i                               maximises the discriminator's loss
    uniform     +λ ω_{y_i} (p_i - 1/L) / Ω           minimises the cross-entropy of p against the uniform distribution,
                                                     LSE(z) - Σ_l z_l / L, which is lowest where all languages are
                                                     equally likely (Tzeng et al. 2015, arXiv 1510.02192)

and hidden receives c_t · ∂/∂x_{d(t)}, where c_t is the weight of token t in its document's sample: 1/|d| (mean),
1 for the first token and 0 for others (cls), 1 (token). Padding (document_id -1) and documents without tokens have
weight 0, so their gradient is exactly 0. λ changes only hidden's gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unibert_kernels import operators
from unibert_kernels.arguments import AdversaryInputs, AdversaryOptions, Level, Objective
from unibert_kernels.paths import ADVERSARY_PATHS, check_path


class AdversaryOutput(NamedTuple):
    """Result of `adversary_loss`; only ``loss`` is differentiable. A sample is a document, or a token at that level."""

    loss: Tensor
    """() fp32 (fp64 for fp64 inputs), nats: the discriminator's weighted mean cross-entropy, 0 without samples."""
    weight_sum: Tensor
    """() like loss: Ω, the sum of the samples' class weights."""
    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    """() int64: samples."""
    correct: Tensor
    """() int64: samples whose language has the largest logit (ties count)."""


def adversary_loss(
    hidden: Tensor,
    document_ids: Tensor,
    languages: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    reversal: Tensor,
    *,
    level: Level = "mean",
    objective: Objective = "reversal",
    class_weights: Tensor | None = None,
    path: str = "auto",
) -> AdversaryOutput:
    """The discriminator's loss, whose backward pass gives the encoder λ times an adverse gradient; see the module.

    Computed in fp32 (fp64 for fp64 inputs, chunked only) with or without autocast: the layer is too small for half
    precision to pay. Gradients have the dtype of their input. Results are bitwise the same from run to run.

    Args:
        hidden: (T, H) states of all tokens.
        document_ids: (T,) int64, the token's index into ``languages``, -1 on padding.
        languages: (D,) int64, each document's language in 0 … L-1. Any other makes loss and gradients NaN.
        w1: (F, H).
        b1: (F,).
        w2: (L, F).
        b2: (L,).
        reversal: () fp32 on hidden's device: λ, read when the loss is computed.
        level: what a sample is: a document's mean, its first token, or every token.
        objective: the encoder's objective: ``reversal`` of the discriminator's loss, or ``uniform`` confusion.
        class_weights: (L,) ω.
        path: one of `unibert_kernels.ADVERSARY_PATHS`; see `unibert_kernels.paths`.

    Raises:
        ValueError: if shapes do not fit, the level or objective is unknown, or the path is unknown or cannot serve the
            tensors (``fused`` takes at most `operators.MAX_FUSED_LANGUAGES` languages).
    """
    check_path(path, ADVERSARY_PATHS)
    options = AdversaryOptions(level, objective)
    if hidden.ndim != 2 or document_ids.shape != hidden.shape[:1]:
        raise ValueError(f"document_ids: {tuple(document_ids.shape)} does not fit hidden (T, H) {tuple(hidden.shape)}")
    if w1.ndim != 2 or w2.ndim != 2:
        raise ValueError(f"w1, w2: need two dimensions, got {tuple(w1.shape)} and {tuple(w2.shape)}")
    num_languages, intermediate_size = len(w2), len(w1)
    for name, tensor, shape in (
        ("w1", w1, (intermediate_size, hidden.shape[1])),
        ("b1", b1, (intermediate_size,)),
        ("w2", w2, (num_languages, intermediate_size)),
        ("b2", b2, (num_languages,)),
        ("class_weights", class_weights, (num_languages,)),
        ("reversal", reversal, ()),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: needs shape {shape}, got {tuple(tensor.shape)}")

    inputs = AdversaryInputs(hidden, document_ids, languages, w1, b1, w2, b2, reversal, class_weights)
    return AdversaryOutput(*operators.adversary(inputs, options, path))


class LanguageDiscriminator(nn.Module):
    """Module with the parameters of `adversary_loss`: ``w1`` (F, H), ``b1`` (F,), ``w2`` (L, F), ``b2`` (L,).

    They belong to the module itself, not to layers inside it, so that DeepSpeed's ZeRO stage 3 gathers them when the
    module is called.
    """

    def __init__(
        self,
        hidden_size: int,
        num_languages: int,
        intermediate_size: int,
        level: Level = "mean",
        objective: Objective = "reversal",
    ) -> None:
        super().__init__()
        AdversaryOptions(level, objective)  # raises for unknown choices before the first step
        self.level = level
        self.objective = objective
        self.w1 = nn.Parameter(torch.empty(intermediate_size, hidden_size))
        self.b1 = nn.Parameter(torch.empty(intermediate_size))
        self.w2 = nn.Parameter(torch.empty(num_languages, intermediate_size))
        self.b2 = nn.Parameter(torch.empty(num_languages))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases from U(-1/√fan_in, 1/√fan_in), as `torch.nn.Linear` does."""
        for weight, bias in ((self.w1, self.b1), (self.w2, self.b2)):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(
        self,
        hidden: Tensor,
        document_ids: Tensor,
        languages: Tensor,
        reversal: Tensor,
        class_weights: Tensor | None = None,
        path: str = "auto",
    ) -> AdversaryOutput:
        """`adversary_loss` of ``hidden`` (T, H) with this module's parameters, level and objective."""
        return adversary_loss(
            hidden,
            document_ids,
            languages,
            self.w1,
            self.b1,
            self.w2,
            self.b2,
            reversal,
            level=self.level,
            objective=self.objective,
            class_weights=class_weights,
            path=path,
        )

    def extra_repr(self) -> str:
        return f"{self.w1.shape[1]} → {self.w1.shape[0]} → {self.w2.shape[0]}, {self.level}, {self.objective}"
