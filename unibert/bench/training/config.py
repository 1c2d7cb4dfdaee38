"""Options of ``bench train``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(kw_only=True)
class TrainBenchConfig:
    """Options of ``unibert bench train``. The defaults are the case of the goals on a CPU."""

    providers: list[str] | None = None
    """Measure only providers whose name contains one of these words. Default: all."""

    ablation: bool = True
    """Measure UniBERT without each of its optimisations too, and with each option that is off by default."""

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

    batch_size: int = 8
    """Sequences of each rank in a step."""

    masking_rate: float = 0.15
    """Share of the tokens that are masked."""

    document_length: int = 100
    """Median of the documents' tokens."""

    ranks: int = 1
    """Ranks that train together, on this machine's GPUs, or on its cores in equal shares."""

    ds_config: str = "zero0"
    """DeepSpeed JSON of the trainer and of DeepSpeed's engine, as training.ds_config in a run file."""

    warmup: int = 4
    """Steps of each run that do not count, until it reuses its memory."""

    steps: int = 4
    """Steps of each run that count."""

    repeats: int = 2
    """Number of rounds. In each round every provider runs once, in its own process."""

    threads: int | None = None
    """CPU threads of all ranks together. Default: all cores."""

    seed: int = 0
    """Seed of documents, weights and masks."""

    output: Path = Path("docs/benchmarks/train.json")
    """JSON file to write; the plot is written beside it."""

    def __post_init__(self) -> None:
        positive = ("layers", "batch_size", "ranks", "warmup", "steps", "repeats", "intermediate_size")
        for key, minimum in {
            **dict.fromkeys(positive, 1),
            "vocab_size": 100,
            "sequence_length": 16,
            "document_length": 8,
        }.items():
            if getattr(self, key) < minimum:
                raise ValueError(f"{key}: must be at least {minimum}, got {getattr(self, key)}")
        if self.hidden_size <= 0 or self.hidden_size % 64:
            raise ValueError(f"hidden_size: must be a multiple of 64, got {self.hidden_size}")
        if not 0 < self.masking_rate <= 1:
            raise ValueError(f"masking_rate: must lie above 0 and not above 1, got {self.masking_rate}")
        if self.threads is not None and self.threads < self.ranks:
            raise ValueError(f"threads: must be at least one for each of the {self.ranks} ranks, got {self.threads}")
        if torch.cuda.is_available() and self.ranks > torch.cuda.device_count():
            raise ValueError(f"ranks: this machine has {torch.cuda.device_count()} GPUs, got {self.ranks}")

    @property
    def threads_per_rank(self) -> int:
        """CPU threads of each rank."""
        return max(1, (self.threads or len(os.sched_getaffinity(0))) // self.ranks)
