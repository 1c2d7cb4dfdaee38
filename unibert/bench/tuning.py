"""`unibert_kernels.fused.tune` with its table written after every kernel: ``python -m unibert.bench.tuning OUTPUT``.

Tuning that is stopped by the clock thus keeps the kernels that it is done with. On a CPU it chooses between two of the
interpreter's tiles at a size that takes seconds, and writes them down as if a GPU had.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from unibert_kernels.fused import configs, tune
from unibert_kernels.fused.launch import generation_of

SHAPE, REHEARSED_SHAPE = (250_000, 384, 9_830), (300, 32, 40)
"""Vocabulary, hidden size, rows."""


def tune_by_kernel(output: Path, device: torch.device, seconds: float) -> None:
    """Tune one kernel after the other; what one leaves of its time is the next one's."""
    end = time.monotonic() + seconds
    on_gpu = device.type == "cuda"
    if not on_gpu:
        tune.candidates = _rival
    best: dict[str, configs.TileConfig] = {}
    kernels = tune.KERNELS
    for number, kernel in enumerate(kernels):
        tune.KERNELS = (kernel,)  # type: ignore[assignment]
        share = max(1.0, end - time.monotonic()) / (len(kernels) - number)
        best |= tune.tune(*(SHAPE if on_gpu else REHEARSED_SHAPE), device, minutes=share / 60)
        tune.write_table(output, generation_of(device) if on_gpu else "sm_90", best)


def _rival(kernel: str, generation: str) -> Iterator[configs.TileConfig]:
    yield replace(configs.INTERPRETED, columns=512)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m unibert.bench.tuning")
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=480.0)
    options = parser.parse_args()
    tune_by_kernel(options.output, torch.device(options.device), options.seconds)


if __name__ == "__main__":
    main()
