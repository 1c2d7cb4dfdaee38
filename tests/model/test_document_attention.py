"""Attention document by document equals the plain formula, with any scale and window."""

import pytest
import torch
from torch import Tensor

from unibert.model.document_attention import attend_by_document

# In float64, whose sums of 12 terms of order 1 are exact to 1e-14.
TOLERANCE = 1e-12
BOUNDS = [0, 1, 5, 12, 12, 16, 24]
"""Two sequences of 12 tokens: documents of 1, 4 and 7, an empty one, of 4 and 8."""


def plainly(query: Tensor, key: Tensor, value: Tensor, scale: float | None, reach: int | None) -> Tensor:
    """The softmax over all tokens of a sequence, without those of other documents or out of reach."""
    batch, _, length, width = query.shape
    document = torch.bucketize(torch.arange(batch * length), torch.tensor(BOUNDS[1:]), right=True).view(batch, length)
    allowed = document[:, :, None] == document[:, None, :]
    if reach is not None:
        place = torch.arange(length)
        allowed = allowed & ((place[:, None] - place).abs() <= reach)
    scores = (query @ key.transpose(-1, -2)) * (width**-0.5 if scale is None else scale)
    return (scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("reach", [None, 2, 6])
def test_outputs_and_gradients(scale, reach):
    generator = torch.Generator().manual_seed(0)
    sizes = {"size": (2, 3, 12, 8), "generator": generator, "dtype": torch.float64}
    inputs = [torch.randn(**sizes, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(2, 12, 3, 8, generator=generator, dtype=torch.float64)
    output, expected = attend_by_document(*inputs, BOUNDS, scale=scale, reach=reach), plainly(*inputs, scale, reach)
    torch.testing.assert_close(output, expected, atol=TOLERANCE, rtol=TOLERANCE)
    gradients = [torch.autograd.grad(one, inputs, upstream) for one in (output, expected)]
    torch.testing.assert_close(*gradients, atol=TOLERANCE, rtol=TOLERANCE)
