"""fp32 matrix products on CPUs on which torch's default library does not use AVX-512."""

from __future__ import annotations

from functools import cache

import torch

_SWITCH = "medium"
_FP32_ERROR = 1e-5
"""Relative error of a product of length 512 that fp32 keeps well below: it has 24 bits, bf16 has 8."""


def use_fastest_products(device: torch.device) -> bool:
    """Let torch compute fp32 products with oneDNN on CPUs of AMD with AVX-512, for the rest of the process.

    torch's wheels take MKL, which uses half the width of these CPUs. torch's switch permits oneDNN to round factors to
    bf16; on a CPU without matrix units for that, oneDNN computes in fp32. Since that is its choice, a product is
    compared with float64 first. On other CPUs and on GPUs nothing changes.

    Returns:
        whether products are oneDNN's now.
    """
    if device.type != "cpu" or not _onednn_is_better():
        return False
    torch.set_float32_matmul_precision(_SWITCH)
    return True


@cache
def _onednn_is_better() -> bool:
    cpu = torch.cpu.get_capabilities()
    is_wide_amd = str(cpu.get("cpu_name")).startswith("AMD") and cpu.get("avx512_f", False)
    if not (is_wide_amd and torch.backends.mkldnn.is_available()):
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.rand(512, 512, generator=generator) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_SWITCH)
    try:
        product = left @ right
    finally:
        torch.set_float32_matmul_precision(before)
    exact = left.double() @ right.double()
    return bool(((product - exact).abs() <= _FP32_ERROR * exact).all())
