"""Options of ``bench stream``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(kw_only=True)
class StreamBenchConfig:
    """Options of ``unibert bench stream``."""

    corpus: str
    """Corpus folder made by ``unibert corpus build``, with text like that of a training."""

    providers: list[str] | None = None
    """Measure only providers whose name contains one of these words. Stages have names like ``stage: reading``."""

    sequence_length: int = 512
    """Tokens per sequence."""

    batch_size: int = 64
    """Sequences per batch."""

    masking_rate: float = 0.3
    """Share of the ordinary tokens that are masked."""

    repeats: int = 3
    """Number of rounds. In each round every provider reads the corpus once, in its own process."""

    tuning_seconds: float = 10.0
    """Maximum seconds for each option of a provider that has several."""

    plan: bool = True
    """Measure planning and resuming too."""

    waits_seconds: float = 60.0
    """Seconds for each measurement of the waits for data, of which there are four. 0 measures none."""

    seed: int = 0
    """Seed of order and masking."""

    work: Path | None = None
    """Folder for the peers' copies of the corpus, about five times its size. Default: a temporary folder."""

    output: Path = Path("docs/benchmarks/stream-cpu")
    """Folder for results.json, results.csv and results.png."""

    def __post_init__(self) -> None:
        for key, minimum in {"sequence_length": 8, "batch_size": 1, "repeats": 1}.items():
            if getattr(self, key) < minimum:
                raise ValueError(f"{key}: must be at least {minimum}, got {getattr(self, key)}")
        if not 0 < self.masking_rate <= 1:
            raise ValueError(f"masking_rate: must lie above 0 and not above 1, got {self.masking_rate}")
        if self.waits_seconds < 0:
            raise ValueError(f"waits_seconds: must not be negative, got {self.waits_seconds}; use 0 for none")
        if self.tuning_seconds <= 0:
            raise ValueError(f"tuning_seconds: must be positive, got {self.tuning_seconds}")
