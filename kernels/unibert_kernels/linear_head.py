"""A linear head over the vocabulary, as a caller gives it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Head(NamedTuple):
    """z = h Wᵀ + b; see `Head.of`."""

    hidden: Tensor
    """(N, H), or (T, H) of which rows are picked."""
    weight: Tensor
    """(V, H)."""
    bias: Tensor | None
    """(V,)."""
    dtype: torch.dtype
    """What the product's operands are rounded to where it takes halves."""

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Head:
        """With autocast's dtype on CUDA, or else the one that holds both operands; fp64 stays what it is.

        Autocast is asked here and nowhere below: an operator runs later than it was traced, under whatever autocast.
        """
        dtype = torch.promote_types(hidden.dtype, weight.dtype)
        if hidden.is_cuda and dtype != torch.float64 and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
        return cls(hidden, weight, bias, dtype)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Those that a gradient may be wanted of."""
        return self.hidden, self.weight, self.bias
