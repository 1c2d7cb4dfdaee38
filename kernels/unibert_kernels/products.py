"""Matrix products of half-precision operands with fp32 results."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def accumulator_dtype(*tensors: Tensor) -> torch.dtype:
    """fp64 if any of ``tensors`` is fp64, else fp32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def product(left: Tensor, right: Tensor, out: Tensor, *, accumulate: bool = False) -> None:
    """Write ``left`` (M, K) times ``right`` (K, N) into ``out`` (M, N), or add it to ``out``.

    Both operands have ``out``'s dtype, or both have half precision and ``out`` is fp32.
    """
    if left.dtype != out.dtype and not left.is_cuda:
        # Only CUDA multiplies half-precision operands into fp32.
        left, right = left.to(out.dtype), right.to(out.dtype)
    if left.dtype == out.dtype:
        torch.addmm(out, left, right, beta=1 if accumulate else 0, out=out)
    elif not accumulate:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    elif _adds_halves_to_fp32(left.device, left.dtype):
        torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
    else:
        out += torch.mm(left, right, out_dtype=out.dtype)


def fp32_products_may_be_tf32() -> bool:
    """Whether CUDA may round the operands of fp32 products to TF32, by either of torch's settings.

    `torch.get_float32_matmul_precision` would raise once the newer setting, `torch.backends.fp32_precision`, is used.
    """
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


@cache
def _adds_halves_to_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch's addmm adds the product of half-precision operands to an fp32 summand. Not every release
    takes one, and the result is checked too."""
    operand = torch.ones(16, 16, device=device, dtype=dtype)
    # In half precision 2^13 + 0.25 would be rounded to 2^13.
    total = torch.full((16, 16), 2.0**13 + 0.25, device=device)
    try:
        torch.addmm(total, operand, operand, out_dtype=torch.float32, out=total)
    except RuntimeError:
        return False
    return bool((total == 2.0**13 + 16.25).all())
