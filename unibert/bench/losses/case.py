"""A case of the benchmark: one loss at one shape, on inputs of one kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

Loss = Literal["mlm", "distillation", "adversary"]
Distribution = Literal["uniform", "trained"]

TEACHER_WIDTH = 2
"""Ratio of the teacher's hidden size to the student's."""
NUM_LANGUAGES = 107


@dataclass(frozen=True, kw_only=True)
class Case:
    """One piece of work for all providers of ``loss``."""

    loss: Loss = "mlm"
    rows: int
    """N, the number of masked rows; for the adversary, of all tokens."""
    vocab: int
    """V; not used by the adversary."""
    hidden: int
    """H, the student's hidden size."""
    dtype: str = "float32"
    """Type of hidden states and head; the discriminator's parameters are always fp32."""
    distribution: Distribution = "trained"
    bias: bool = False
    seed: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def floor_flops(self) -> int:
        """Minimum flops of any method: three products for a trained head, one for a teacher's; 0 for the adversary."""
        product = 2 * self.rows * self.hidden * self.vocab
        return {"mlm": 3, "distillation": 3 + TEACHER_WIDTH, "adversary": 0}[self.loss] * product

    def __str__(self) -> str:
        vocab = "" if self.loss == "adversary" else f" V={self.vocab}"
        bias = ", bias" if self.bias else ""
        return f"{self.loss} N={self.rows}{vocab} H={self.hidden} {self.dtype}, {self.distribution}{bias}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
