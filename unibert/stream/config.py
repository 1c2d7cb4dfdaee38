"""The ``stream`` section of a run file."""

from __future__ import annotations

from dataclasses import dataclass, field

from unibert.errors import UserError
from unibert.schedules import Schedule, Timeline, check_points

DELIVERY_KEYS = (
    "num_workers",
    "prefetch_steps",
    "shards_url",
    "allow_pipe",
    "cache_dir",
    "cache_gib",
    "retry_seconds",
    "max_damaged_share",
)
"""Keys that decide how batches are delivered; the other keys decide what they contain."""

_MINIMA = {"lanes": 1, "window_shards": 1, "num_workers": 0, "prefetch_steps": 1, "retry_seconds": 0}


@dataclass(kw_only=True)
class StreamConfig:
    """How shards become batches: mixture, shuffling, masking, processes."""

    lanes: int = 8
    """Independent readers of the run. Any number of ranks that divides it gives the same batches."""

    window_shards: int = 4
    """Shards that a lane holds in memory and mixes at a time."""

    sampling_exponent: Schedule = 0.7
    """Languages are drawn in proportion to (train tokens) ** exponent: 1 is proportional, 0 is uniform."""

    language_starts: dict[str, float] = field(default_factory=dict)
    """Progress, from 0 to 1, at which a language joins the mixture, as in {zh: 0.3}. The others take part from
    the start. Shards are drawn a window ahead, so a language may join that much earlier."""

    masking_rate: Schedule = 0.3
    """Share of the ordinary tokens that are masked. Above 0, every sequence has at least one; 0 masks none."""

    mask_share: float = 0.8
    """Share of the masked positions that show ``<mask>``."""

    random_share: float = 0.1
    """Share of the masked positions that show a random token. The rest show their original token."""

    whole_words: bool = False
    """Mask all pieces of a word or none."""

    max_epochs: float | None = None
    """Maximum number of times that a language is read. null repeats languages as often as the mixture requires."""

    languages: list[str] | None = None
    """Codes of the languages to train on, as in en,de. null takes all languages of the corpus."""

    num_workers: int = 0
    """Loader processes per rank, at most one per lane of the rank. 0 loads in the training process. The batches are
    the same with any number."""

    prefetch_steps: int = 8
    """Steps that a loader process prepares ahead."""

    shards_url: str | None = None
    """Address of the shards if they are not beside the manifest: a folder, ``https://…``, ``s3://…``, ``gs://…`` or
    another scheme that WebDataset opens, or ``pipe:`` and a shell command with ``{path}`` for a shard's path."""

    allow_pipe: bool = False
    """Allow ``shards_url`` to run a shell command."""

    cache_dir: str | None = None
    """Folder on this machine that keeps fetched shards. null fetches them again in every epoch."""

    cache_gib: float | None = None
    """Size in GiB above which the cache drops its oldest shards. null never drops any."""

    retry_seconds: float = 600.0
    """Seconds for which the run retries a shard that a server does not deliver, before it ends."""

    max_damaged_share: float = 0.01
    """Share of the corpus's blocks that may be damaged. Damaged blocks are skipped. With more, the run is refused."""

    def __post_init__(self) -> None:
        for name, minimum in _MINIMA.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"stream.{name}: must be at least {minimum}, got {getattr(self, name)}")
        if any(exponent < 0 for exponent in _values(self.sampling_exponent, "stream.sampling_exponent")):
            raise ValueError(f"stream.sampling_exponent: must not be negative, got {self.sampling_exponent}")
        if not all(0 <= rate <= 1 for rate in _values(self.masking_rate, "stream.masking_rate")):
            raise ValueError(f"stream.masking_rate: must lie between 0 and 1, got {self.masking_rate}")
        if self.mask_share < 0 or self.random_share < 0 or self.mask_share + self.random_share > 1 + 1e-9:
            raise ValueError(
                f"stream.mask_share: {self.mask_share} and stream.random_share {self.random_share} must not be "
                "negative nor add up to more than 1"
            )
        if self.max_epochs is not None and self.max_epochs < 1:
            raise ValueError(f"stream.max_epochs: must be at least 1, got {self.max_epochs}; use null for no limit")
        if self.languages is not None and not self.languages:
            raise ValueError("stream.languages: must name at least one language; use null for all of the corpus")
        for code, start in self.language_starts.items():
            if not 0 <= start < 1:
                raise ValueError(
                    f"stream.language_starts.{code}: must be a share of the run, at least 0 and below 1, got {start}"
                )
        self._check_delivery()

    def raise_if_world_size_does_not_fit(self, world_size: int) -> None:
        """Raise UserError if the lanes cannot be divided among ``world_size`` ranks."""
        if self.lanes % world_size:
            allowed = ", ".join(str(size) for size in range(1, self.lanes + 1) if self.lanes % size == 0)
            raise UserError(
                f"stream.lanes: {self.lanes} lanes cannot be divided among {world_size} ranks; use {allowed} ranks, or "
                f"start a new run with stream.lanes a multiple of {world_size}"
            )

    def raise_if_batches_do_not_fit(self, timeline: Timeline) -> None:
        """Raise UserError if the sequences of a step cannot be divided among the lanes."""
        for phase in timeline.phases():
            if phase.num_sequences % self.lanes:
                raise UserError(
                    f"training.global_batch_size: {phase.num_sequences} is not a multiple of stream.lanes "
                    f"({self.lanes}); change one of them"
                )

    def _check_delivery(self) -> None:
        if not 0 <= self.max_damaged_share <= 1:
            raise ValueError(f"stream.max_damaged_share: must lie between 0 and 1, got {self.max_damaged_share}")
        if self.cache_gib is not None and self.cache_gib <= 0:
            raise ValueError(f"stream.cache_gib: must be positive, got {self.cache_gib}; use null for no limit")
        if self.cache_gib is not None and self.cache_dir is None:
            raise ValueError("stream.cache_gib: limits a cache, but there is none; set stream.cache_dir")
        if self.shards_url is not None and self.shards_url.startswith("pipe:"):
            if not self.allow_pipe:
                raise ValueError(
                    "stream.shards_url: runs a shell command; set stream.allow_pipe to true if you trust this run file"
                )
            if "{path}" not in self.shards_url:
                raise ValueError("stream.shards_url: a pipe: command must contain {path} for the shard's path")


def _values(schedule: Schedule, name: str) -> list[float]:
    if not isinstance(schedule, list):
        return [schedule]
    check_points(schedule, name)
    return [value for _, value in schedule]
