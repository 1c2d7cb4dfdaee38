"""The ``stream`` section of a run file."""

from __future__ import annotations

from dataclasses import dataclass

from unibert.schedules import Schedule, check_points


@dataclass(kw_only=True)
class StreamConfig:
    """How shards become batches: mixture, mixing, masking, processes."""

    lanes: int = 8
    """Independent readers of the run. Every world size that divides it gives the same batches."""

    window_shards: int = 4
    """Shards that a lane holds in memory and mixes at a time."""

    sampling_exponent: Schedule = 0.7
    """Languages are drawn in proportion to (train tokens) ** exponent, over progress; 1 is proportional, 0 uniform."""

    masking_rate: Schedule = 0.3
    """Share of the ordinary tokens that is masked, over progress."""

    mask_share: float = 0.8
    """Share of the masked positions that show ``<mask>``."""

    random_share: float = 0.1
    """Share of the masked positions that show a random token; the rest keep their own."""

    max_epochs: float | None = None
    """Most times that any language is read; null repeats languages as often as the mixture asks."""

    languages: list[str] | None = None
    """Codes of the languages to train on; null takes all of the corpus."""

    num_workers: int = 0
    """Loader processes per rank; 0 loads in the training process. Never changes the batches."""

    def __post_init__(self) -> None:
        for name, least in (("lanes", 1), ("window_shards", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"stream.{name}: must be at least {least}, got {getattr(self, name)}")
        if any(exponent < 0 for exponent in _values(self.sampling_exponent, "stream.sampling_exponent")):
            raise ValueError(f"stream.sampling_exponent: must not be negative, got {self.sampling_exponent}")
        if not all(0 < rate <= 1 for rate in _values(self.masking_rate, "stream.masking_rate")):
            raise ValueError(f"stream.masking_rate: must lie above 0 and not above 1, got {self.masking_rate}")
        if self.mask_share < 0 or self.random_share < 0 or self.mask_share + self.random_share > 1 + 1e-9:
            raise ValueError(
                f"stream.mask_share: {self.mask_share} and stream.random_share {self.random_share} must not be "
                "negative nor add up to more than 1"
            )
        if self.max_epochs is not None and self.max_epochs < 1:
            raise ValueError(f"stream.max_epochs: must be at least 1, got {self.max_epochs}; use null for no cap")
        if self.languages is not None and not self.languages:
            raise ValueError("stream.languages: must name a language; use null for all of the corpus")


def _values(schedule: Schedule, name: str) -> list[float]:
    if not isinstance(schedule, list):
        return [schedule]
    check_points(schedule, name)
    return [value for _, value in schedule]
