"""The one door through which kernels are launched, so that what is compiled without a GPU is what a GPU would run."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.tools.tensor_descriptor import TensorDescriptor


class Compiled(NamedTuple):
    """A kernel as `compiling_for` compiled it."""

    name: str
    arguments: dict[str, Any]
    """Those that were given by name, constants among them."""
    num_warps: int
    num_stages: int
    binary: Any
    """triton's CompiledKernel: ``asm["cubin"]``, ``metadata.shared`` in bytes."""
    log: str
    """What ptxas said of it."""


_compiled: list[Compiled] | None = None
_compute_capability = 0

INTERPRETER_MULTIPROCESSORS = 4
H100_MULTIPROCESSORS = 132


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: Any = 4,
    num_stages: Any = 3,
    **named: Any,
) -> None:
    """Launch ``kernel`` with arguments and constants, by place or by name; an empty grid launches nothing."""
    if _compiled is not None:
        with redirect_stdout(io.StringIO()) as printed:
            binary = kernel.warmup(*args, grid=grid, num_warps=num_warps, num_stages=num_stages, **named)
        _compiled.append(Compiled(kernel.fn.__name__, named, num_warps, num_stages, binary, printed.getvalue()))
    elif all(grid):
        device = next(arg.device for arg in (*args, *named.values()) if isinstance(arg, Tensor))
        # Triton launches on the current device, wherever the tensors are.
        elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
        with torch.cuda.device(device) if elsewhere else nullcontext():
            kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **named)


def generation_of(device: torch.device) -> str:
    """The section of `configs.TABLE` that serves ``device``: sm_90, sm_80, or interpreter on the CPU."""
    if _compiled is not None:
        capability = _compute_capability
    elif device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)[0] * 10
    else:
        return "interpreter"
    return "sm_90" if capability >= 90 else "sm_80"


def multiprocessors_of(device: torch.device) -> int:
    """How many programs ``device`` runs at once when each fills a multiprocessor."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return INTERPRETER_MULTIPROCESSORS if _compiled is None else H100_MULTIPROCESSORS


def tile_source(matrix: Tensor, block_rows: int, block_columns: int, descriptors: bool) -> Tensor | TensorDescriptor:
    """What `tiles.load_tile` reads ``matrix`` from: itself, or a descriptor for the bulk copy engine of sm_90.

    A descriptor needs rows that begin on 16 bytes; the last dimension is contiguous either way.
    """
    if not descriptors:
        return matrix
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [block_rows, block_columns])


@contextmanager
def compiling_for(compute_capability: int) -> Iterator[list[Compiled]]:
    """Within the context every `launch` compiles for that capability (80, 90) and runs nothing; tensors may lie on
    the CPU. Yields what was compiled. Arguments are specialised as in a run: divisibility, constants, descriptors."""
    global _compiled, _compute_capability
    driver = triton.runtime.driver
    driver.set_active(_NoDevice(compute_capability))
    _compiled, _compute_capability = [], compute_capability
    try:
        # What lies compiled in Triton's cache has lost what ptxas said of it.
        with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope():
            triton.knobs.compilation.always_compile = True
            triton.knobs.nvidia.dump_ptxas_log = True
            yield _compiled
    finally:
        _compiled = None
        if torch.cuda.is_available():
            driver.reset_active()


class _NoDevice:
    """As much of a triton driver as compilation asks for."""

    def __init__(self, compute_capability: int) -> None:
        self.compute_capability = compute_capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.compute_capability, 32)

    def get_current_device(self) -> int:
        # Triton keeps what it compiled by device, so each capability passes for one.
        return self.compute_capability

    def get_current_stream(self, device: int) -> int:
        return 0
