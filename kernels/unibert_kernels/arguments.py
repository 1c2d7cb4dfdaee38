"""Arguments of the losses that are passed together from the public functions to the paths.

Only three places name each of them: the public function, the class here, and the operator, whose arguments
torch.library needs flat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor

Level = Literal["mean", "cls", "token"]
Objective = Literal["reversal", "uniform"]


@dataclass(frozen=True)
class MLMHeadOptions:
    """Factors in the formula of `unibert_kernels.mlm_head`."""

    label_smoothing: float = 0.0
    """ε."""
    z_loss: float = 0.0
    """ζ."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing: must lie between 0 and 1, got {self.label_smoothing}")
        if self.z_loss < 0:
            raise ValueError(f"z_loss: must not be negative, got {self.z_loss}")


@dataclass(frozen=True)
class DistillationOptions:
    """Factors in the formula of `unibert_kernels.distillation`."""

    temperature: float
    """T."""
    kl_factor: float
    """κ."""
    ce_weight: float
    """α."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature: must be above 0, got {self.temperature}")


@dataclass(frozen=True)
class AdversaryOptions:
    """Choices of `unibert_kernels.adversary`."""

    level: str
    """One of `Level`."""
    objective: str
    """One of `Objective`."""

    def __post_init__(self) -> None:
        for name, choices in (("level", get_args(Level)), ("objective", get_args(Objective))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: must be one of {', '.join(choices)}, got {getattr(self, name)!r}")


class AdversaryInputs(NamedTuple):
    """Tensors of `unibert_kernels.adversary_loss`, whose docstring has their shapes."""

    hidden: Tensor
    document_ids: Tensor
    languages: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    reversal: Tensor
    class_weights: Tensor | None

    @property
    def discriminator(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The discriminator's parameters."""
        return self.w1, self.b1, self.w2, self.b2

    @property
    def differentiable(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The tensors that may need a gradient."""
        return self.hidden, *self.discriminator
