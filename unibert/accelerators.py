"""Accelerators, their data sheets, and the peak of matrix products that a device reaches.

Peaks come from the vendors' data sheets: dense bf16 products with fp32 sums, boost clock, no sparsity.
"""

from __future__ import annotations

import difflib
import math
import os
import time
from dataclasses import dataclass

import torch

from unibert.errors import UserError

PRODUCT_SIZES = {"cpu": 1024, "cuda": 8192}
"""Rows of the square matrices whose product measures a device's peak."""
PRODUCT_SECONDS = 1.0
"""For how long they are multiplied."""


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """The device of one rank."""

    name: str
    product: str
    """Name in the vendor's data sheet, which is also CUDA's name of the device."""
    peak_tflops: float
    """Peak of dense products, in bf16 on a GPU, in fp32 on a CPU."""
    memory_gib: float
    """Memory as nvidia-smi counts it; for a CPU, the machine's memory divided by its ranks."""
    bandwidth_tbs: float | None
    """Memory bandwidth in TB/s."""
    link_gbs: float | None
    """Bandwidth to the other devices of the node, GB/s each way: NVLink, else PCIe. None: no known limit."""

    @property
    def device_type(self) -> str:
        """The device type in torch."""
        return "cpu" if self.name == "cpu" else "cuda"


def _gpu(name: str, product: str, tflops: float, memory: float, bandwidth: float, link: float) -> Accelerator:
    return Accelerator(
        name=name, product=product, peak_tflops=tflops, memory_gib=memory, bandwidth_tbs=bandwidth, link_gbs=link
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("h200", "NVIDIA H200", 989.4, 140.4, 4.8, 450),
        _gpu("h100", "NVIDIA H100 80GB HBM3", 989.4, 79.6, 3.35, 450),
        _gpu("h100-pcie", "NVIDIA H100 PCIe", 756.0, 79.6, 2.0, 64),
        _gpu("a100-80", "NVIDIA A100-SXM4-80GB", 312.0, 80.0, 2.039, 300),
        _gpu("a100-40", "NVIDIA A100-SXM4-40GB", 312.0, 40.0, 1.555, 300),
        _gpu("l40s", "NVIDIA L40S", 362.0, 45.0, 0.864, 32),
        _gpu("rtx4090", "NVIDIA GeForce RTX 4090", 165.2, 24.0, 1.008, 32),
        _gpu("rtx3090", "NVIDIA GeForce RTX 3090", 71.0, 24.0, 0.936, 32),
    )
}


def find_accelerator(name: str, ranks_per_node: int) -> Accelerator:
    """Return the accelerator of this name; ``cpu`` is this machine, which is measured for a second.

    Raises:
        UserError: for an unknown name.
    """
    if name == "cpu":
        return measure_cpu(ranks_per_node)
    if name not in GPUS:
        nearest = difflib.get_close_matches(name, [*GPUS, "cpu"], n=1)
        hint = f"did you mean {nearest[0]!r}? Choose from" if nearest else "choose from"
        raise UserError(f"--gpu: {name!r} is unknown; {hint} {', '.join(GPUS)} or cpu")
    return GPUS[name]


def measure_cpu(num_ranks: int) -> Accelerator:
    """Measure what one of ``num_ranks`` ranks gets of this machine: fp32 products with its share of the threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, cores // num_ranks))
    try:
        peak = measured_peak(torch.device("cpu"), torch.float32)
    finally:
        torch.set_num_threads(before)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Accelerator(
        name="cpu",
        product="CPU",
        peak_tflops=peak,
        memory_gib=memory / num_ranks,
        bandwidth_tbs=None,
        link_gbs=None,
    )


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = PRODUCT_SECONDS) -> float:
    """Return the TFLOP/s of the fastest square product on ``device`` within ``seconds``."""
    size = PRODUCT_SIZES[device.type]
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    end, best = time.perf_counter() + seconds, math.inf
    while time.perf_counter() < end:
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2e-12 * size**3 / best


def device_peak(device: torch.device, dtype: torch.dtype, seconds: float = PRODUCT_SECONDS) -> float:
    """Return the TFLOP/s of ``device``: of the data sheet for a known GPU in 16 bits, else measured in ``dtype``."""
    if device.type == "cuda" and dtype.itemsize == 2:
        name = torch.cuda.get_device_name(device)
        for gpu in GPUS.values():
            if gpu.product == name:
                return gpu.peak_tflops
    return measured_peak(device, dtype, seconds)
