"""A linear head over the vocabulary, as the caller passes it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Head(NamedTuple):
    """z = h Wᵀ + b; see `Head.of`."""

    hidden: Tensor
    """(N, H)."""
    weight: Tensor
    """(V, H)."""
    bias: Tensor | None
    """(V,)."""
    dtype: torch.dtype
    """Dtype that the product's operands are rounded to, where the product takes half precision."""

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Head:
        """Build a head in autocast's dtype on CUDA, else in the dtype that holds both operands; fp64 stays fp64.

        Autocast is read only here: an operator runs later than it was traced, and autocast may differ by then.
        """
        dtype = torch.promote_types(hidden.dtype, weight.dtype)
        if hidden.is_cuda and dtype != torch.float64 and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
        return cls(hidden, weight, bias, dtype)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The tensors that may need a gradient."""
        return self.hidden, self.weight, self.bias
