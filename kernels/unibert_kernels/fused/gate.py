"""Compile every kernel for sm_80 and sm_90 without a GPU and report the resources that it uses.

`python -m unibert_kernels.fused.gate` prints a table and exits with 1 if a kernel spills registers, needs more shared
memory than its generation has, or makes ptxas warn; ``--json FILE`` writes the table to a file. The kernels are those
that the losses launch, with the tile sizes of `configs.TABLE` and arguments specialised as in a run, in bf16 and fp32;
fp16 uses the kernels of bf16.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
import triton

from unibert_kernels.arguments import (
    AdversaryInputs,
    AdversaryOptions,
    DistillationOptions,
    Level,
    MLMHeadOptions,
    Objective,
)
from unibert_kernels.fused import adversary, distillation, mlm_head, rounding
from unibert_kernels.fused.configs import SHARED_BYTES
from unibert_kernels.fused.launch import Compiled, compiling_for
from unibert_kernels.linear_head import Head

CONSTANTS_SHOWN = (
    "MODE",
    "STORED",
    "TEMPERED",
    "LABELLED",
    "WITH_CE",
    "HAS_BIAS",
    "LEVEL",
    "OBJECTIVE",
    "ROWS",
    "COLUMNS",
    "DEPTH",
)

VARIANTS = ((2.0, False, 0.0), (1.0, True, 1.0), (2.0, True, 0.0), (2.0, True, 1.0))
"""Variants of distillation: temperature, whether there are labels, weight of the cross-entropy."""


INSTRUCTION_BYTES = 16
"""Size of every instruction since sm_70."""

EXECUTABLE = 4
"""Flag of a section of an ELF file, SHF_EXECINSTR."""


@dataclass(frozen=True)
class Resources:
    """Resources that one kernel uses."""

    kernel: str
    generation: str
    dtype: str
    constants: str
    num_warps: int
    num_stages: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: int
    tensor_core_instructions: int
    warnings: str
    """Codes of ptxas's advisories, C75xx: for instance that it serialises the asynchronous products of sm_90."""

    @property
    def problem(self) -> str:
        """Reason why the kernel fails, empty if it passes."""
        limit = SHARED_BYTES[self.generation]
        if self.spilled_bytes:
            return f"spills {self.spilled_bytes} bytes"
        if self.shared_bytes > limit:
            return f"needs {self.shared_bytes} bytes of shared memory, {limit} are available"
        return f"ptxas warns: {self.warnings}" if self.warnings else ""


def compile_all(compute_capability: int) -> list[Resources]:
    """Compile the kernels of all losses for capability 80 or 90, in every dtype and variant."""
    resources: dict[Resources, None] = {}
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "ieee"),
        ("float32", torch.float32, "ieee"),
        ("float32 as tf32", torch.float32, "tf32"),
    ):
        with _fp32_products(precision), compiling_for(compute_capability) as compiled:
            # The variants without a bias do not depend on the dtype, so one dtype is enough.
            for bias in (False, True) if dtype == torch.bfloat16 else (True,):
                _launch_mlm_head(dtype, bias)
                _launch_distillation(dtype, bias, VARIANTS if dtype == torch.bfloat16 and bias else VARIANTS[:2])
            if precision == "ieee":
                _launch_adversary(dtype)
                _launch_scaling(dtype)
        # Keep a kernel's first launch: later ones compile nothing, and their ptxas log is empty.
        for kernel in {kernel.binary.hash: kernel for kernel in reversed(compiled)}.values():
            resources[_resources(kernel, f"sm_{compute_capability}", name)] = None
    return list(resources)


@contextmanager
def _fp32_products(precision: str) -> Iterator[None]:
    """Set torch's precision of products of fp32 operands on CUDA to ``ieee`` or ``tf32``."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        yield
    finally:
        settings.fp32_precision = before


def _head(dtype: torch.dtype, hidden_size: int, bias: bool) -> Head:
    hidden, weight = torch.zeros(512, hidden_size, dtype=dtype), torch.zeros(4000, hidden_size, dtype=dtype)
    return Head.of(hidden, weight, torch.zeros(4000, dtype=dtype) if bias else None)


def _launch_mlm_head(dtype: torch.dtype, bias: bool) -> None:
    head = _head(dtype, 384, bias)
    labels = torch.zeros(512, dtype=torch.int64)
    for path in ("recompute", "exp-store"):
        mlm_head.mlm_head(head, (True, True, bias), labels, labels == 0, MLMHeadOptions(), path, 2**30)


def _launch_distillation(dtype: torch.dtype, bias: bool, variants: Sequence[tuple[float, bool, float]]) -> None:
    student, teacher = _head(dtype, 384, bias), _head(dtype, 768, bias)
    labels = torch.zeros(512, dtype=torch.int64)
    for temperature, labelled, ce_weight in variants:
        distillation.distillation(
            student,
            teacher,
            (True, True, bias),
            labels if labelled else None,
            labels == 0,
            DistillationOptions(temperature, 1.0, ce_weight),
            "recompute",
            2**30,
        )


def _launch_adversary(dtype: torch.dtype) -> None:
    hidden = torch.zeros(512, 384, dtype=dtype, requires_grad=True)
    shapes = (384, 384), (384,), (107, 384), (107,)
    w1, b1, w2, b2 = (torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    ids = torch.zeros(512, dtype=torch.int64)
    inputs = AdversaryInputs(hidden, ids, ids[:8], w1, b1, w2, b2, torch.ones(()), torch.ones(107))
    for level in get_args(Level):
        for objective in get_args(Objective) if dtype == torch.bfloat16 else ("reversal",):
            loss, *_ = adversary.adversary(inputs, (True,) * 5, AdversaryOptions(level, objective))
            loss.backward()


def _launch_scaling(dtype: torch.dtype) -> None:
    rounding.scale(torch.zeros(4096, dtype=dtype), torch.ones(1), torch.zeros(4096, dtype=dtype))


def _resources(compiled: Compiled, generation: str, dtype: str) -> Resources:
    cubin = compiled.binary.asm["cubin"]
    usage = _cuobjdump(cubin, "-res-usage")
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    shown = [f"{key}={compiled.arguments[key]}" for key in CONSTANTS_SHOWN if key in compiled.arguments]
    return Resources(
        kernel=compiled.name.strip("_").removesuffix("_kernel"),
        generation=generation,
        dtype=dtype,
        constants=" ".join(shown),
        num_warps=compiled.num_warps,
        num_stages=compiled.num_stages,
        registers=used["REG"],
        spilled_bytes=used["STACK"] + used["LOCAL"],
        shared_bytes=compiled.binary.metadata.shared,
        instructions=_code_bytes(cubin) // INSTRUCTION_BYTES,
        tensor_core_instructions=len(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)\b", compiled.binary.asm["ptx"])),
        warnings=" ".join(sorted(set(re.findall(r"\bC75\d\d\b", compiled.log)))),
    )


def _code_bytes(cubin: bytes) -> int:
    """Size of the executable sections of an ELF file of 64 bits. To disassemble it takes as long as to compile it."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    entry_bytes, num_entries = struct.unpack_from("<HH", cubin, 58)
    total = 0
    for entry in range(table, table + num_entries * entry_bytes, entry_bytes):
        (flags,), (size,) = struct.unpack_from("<Q", cubin, entry + 8), struct.unpack_from("<Q", cubin, entry + 32)
        total += size if flags & EXECUTABLE else 0
    return total


def _cuobjdump(cubin: bytes, option: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def format_table(resources: list[Resources]) -> str:
    """One line for each kernel, under a header."""
    columns = [*asdict(resources[0]), "problem"]
    lines = [columns] + [[*map(str, asdict(entry).values()), entry.problem] for entry in resources]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def main(arguments: list[str]) -> int:
    """Run the command line.

    Returns:
        the exit status.
    """
    parser = argparse.ArgumentParser(prog="unibert_kernels.fused.gate", description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="file to write the table to")
    options = parser.parse_args(arguments)
    resources = [entry for capability in (80, 90) for entry in compile_all(capability)]
    print(f"triton {triton.__version__}, torch {torch.__version__}")
    print(format_table(resources))
    if options.json:
        document = {"triton": triton.__version__, "kernels": [asdict(entry) for entry in resources]}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    failed = sum(bool(entry.problem) for entry in resources)
    print(f"{len(resources)} kernels, {failed} with a problem")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
