"""All kernels are launched here, so that a compilation without a GPU compiles what a GPU would run."""

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
    """A kernel that `compiling_for` compiled."""

    name: str
    arguments: dict[str, Any]
    """Arguments by name, constants included."""
    num_warps: int
    num_stages: int
    binary: Any
    """Triton's CompiledKernel, with ``asm["cubin"]`` and ``metadata.shared`` (bytes)."""
    log: str
    """Output of ptxas."""


_compiled: list[Compiled] | None = None
_compute_capability = 0

INTERPRETER_MULTIPROCESSORS = 4
H100_MULTIPROCESSORS = 132


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *,
    num_warps: Any = 4,
    num_stages: Any = 3,
    **named: Any,
) -> None:
    """Launch ``kernel`` with arguments and constants by name. An empty grid launches nothing."""
    if _compiled is not None:
        with redirect_stdout(io.StringIO()) as printed:
            binary = kernel.warmup(grid=grid, num_warps=num_warps, num_stages=num_stages, **named)
        _compiled.append(Compiled(kernel.fn.__name__, named, num_warps, num_stages, binary, printed.getvalue()))
    elif all(grid):
        device = next(argument.device for argument in named.values() if isinstance(argument, Tensor))
        # Triton launches on the current device, even if the tensors are on another.
        elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
        with torch.cuda.device(device) if elsewhere else nullcontext():
            kernel[grid](num_warps=num_warps, num_stages=num_stages, **named)


def gpu_generation(device: torch.device) -> str:
    """Section of `configs.TABLE` for ``device``: sm_90, sm_80, or interpreter on the CPU."""
    if _compiled is not None:
        capability = _compute_capability
    elif device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)[0] * 10
    else:
        return "interpreter"
    return "sm_90" if capability >= 90 else "sm_80"


def num_multiprocessors(device: torch.device) -> int:
    """Number of programs that ``device`` runs at once if each fills a multiprocessor."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return INTERPRETER_MULTIPROCESSORS if _compiled is None else H100_MULTIPROCESSORS


def tile_source(matrix: Tensor, block_rows: int, block_columns: int, descriptors: bool) -> Tensor | TensorDescriptor:
    """Source or target of tiles: ``matrix`` itself, or a descriptor of it for the bulk copy engine of sm_90.

    A descriptor needs rows that begin on 16 bytes. The last dimension must be contiguous either way.
    """
    if not descriptors:
        return matrix
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [block_rows, block_columns])


@contextmanager
def compiling_for(compute_capability: int) -> Iterator[list[Compiled]]:
    """Within the context every `launch` compiles for that capability (80 or 90) and runs nothing; tensors may lie on
    the CPU. Arguments are specialised as in a run: divisibility, constants, descriptors.

    Yields:
        the list of compiled kernels, which grows with every launch.
    """
    global _compiled, _compute_capability
    driver = triton.runtime.driver
    driver.set_active(_CompileOnlyDriver(compute_capability))
    _compiled, _compute_capability = [], compute_capability
    try:
        # A kernel from Triton's cache comes without the output of ptxas.
        with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope():
            triton.knobs.compilation.always_compile = True
            triton.knobs.nvidia.dump_ptxas_log = True
            yield _compiled
    finally:
        _compiled = None
        if torch.cuda.is_available():
            driver.reset_active()


class _CompileOnlyDriver:
    """The part of a Triton driver that compilation needs."""

    def __init__(self, compute_capability: int) -> None:
        self.compute_capability = compute_capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.compute_capability, 32)

    def get_current_device(self) -> int:
        # Triton caches compiled kernels by device, so each capability stands for one.
        return self.compute_capability

    def get_current_stream(self, device: int) -> int:
        return 0
