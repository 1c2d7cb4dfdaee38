"""Options of ``bench scaling``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(kw_only=True)
class ScalingBenchConfig:
    """Options of ``unibert bench scaling``."""

    cases: list[str] | None = None
    """Measure only cases whose name contains one of these words, and those that predict them. Default: all."""

    ranks: int = 2
    """Ranks that train together, on this machine's GPUs, or on its cores in equal shares."""

    vocab_size: int = 119_552
    """Size of the vocabulary."""

    hidden_size: int = 384
    """Hidden size of the ModernBERT; its heads have 64."""

    layers: int = 6
    """Its layers."""

    intermediate_size: int = 576
    """Width of its feed-forward layers."""

    sequence_length: int = 256
    """Tokens per sequence."""

    batch_size: int = 4
    """Sequences of a micro-batch."""

    micro_batches: int = 4
    """Micro-batches of a step in the cases with gradient accumulation."""

    pause: float = 2.0
    """Seconds for which ranks compute before each large message whose time is measured, as between those of a step."""

    warmup: int = 4
    """Steps of each run that do not count, until it reuses its memory."""

    steps: int = 4
    """Steps of each run that count."""

    repeats: int = 2
    """Number of rounds. In each round every case runs once, in its own processes."""

    seed: int = 0
    """Seed of documents, weights and masks."""

    output: Path = Path("docs/benchmarks/scaling.json")
    """JSON file to write; the plot is written beside it."""

    def __post_init__(self) -> None:
        minima = {"ranks": 2, "vocab_size": 100, "sequence_length": 16}
        minima |= dict.fromkeys(("layers", "batch_size", "warmup", "steps", "repeats", "intermediate_size"), 1)
        minima["micro_batches"] = 2
        for key, minimum in minima.items():
            if getattr(self, key) < minimum:
                raise ValueError(f"{key}: must be at least {minimum}, got {getattr(self, key)}")
        if self.hidden_size <= 0 or self.hidden_size % 64:
            raise ValueError(f"hidden_size: must be a multiple of 64, got {self.hidden_size}")
        if torch.cuda.is_available() and self.ranks > torch.cuda.device_count():
            raise ValueError(f"ranks: this machine has {torch.cuda.device_count()} GPUs, got {self.ranks}")

    @property
    def threads_per_rank(self) -> int:
        """CPU threads of each rank, also of one that trains alone."""
        return max(1, len(os.sched_getaffinity(0)) // self.ranks)
