"""`unibert_kernels.fused.tune` on a CPU: ``python -m unibert.bench.gpu.tune_rehearsal OUTPUT``.

It chooses between two tiles of the interpreter and writes the choice as if it were a GPU's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from unibert_kernels.fused import configs, tune


def rehearse_tuning(output: Path) -> None:
    """Tune at a size that takes seconds and write the table."""

    def candidates(kernel: str, generation: str) -> Iterator[configs.TileConfig]:
        yield replace(configs.INTERPRETED, columns=512)

    tune.candidates = candidates
    tune.write_table(output, "sm_90", tune.tune(300, 32, 40, torch.device("cpu"), minutes=1.0))


if __name__ == "__main__":
    rehearse_tuning(Path(sys.argv[1]))
