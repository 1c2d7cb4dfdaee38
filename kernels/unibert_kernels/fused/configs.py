"""Tile sizes of each kernel over the vocabulary, by device: the table `configs.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("configs.toml")
SHARED_BYTES = {"sm_80": 101_376, "sm_90": 232_448}
"""Shared memory that a program may use. sm_80's tiles serve sm_86 and sm_89 too, which have 99 KiB; sm_80 has 163."""


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """A tile of ``rows`` x ``columns`` logits, summed over slices of ``depth`` hidden columns."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    descriptors: bool
    """Whether tiles are loaded through tensor descriptors, by sm_90's bulk copy engine."""
    reason: str

    @property
    def launch_options(self) -> dict[str, Any]:
        """Constants of every kernel over the vocabulary, and Triton's options."""
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "DEPTH": self.depth,
            "DESCRIPTORS": self.descriptors,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


INTERPRETED = TileConfig(
    rows=32, columns=256, depth=64, num_warps=4, num_stages=1, descriptors=False, reason="few steps of large tiles"
)
"""The interpreter takes the same time for a step at every tile size."""


def tile_config(kernel: str, dtype: torch.dtype, generation: str) -> TileConfig:
    """The entry of ``kernel`` for operands of ``dtype``; see `launch.gpu_generation`."""
    if generation == "interpreter":
        return INTERPRETED
    return read_table()[generation, kernel, "single" if dtype == torch.float32 else "half"]


@cache
def read_table() -> dict[tuple[str, str, str], TileConfig]:
    """The table's entries by generation, kernel and width."""
    sections = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {
        (generation, kernel, width): TileConfig(**entry)
        for generation, kernels in sections.items()
        for kernel, widths in kernels.items()
        for width, entry in widths.items()
    }
