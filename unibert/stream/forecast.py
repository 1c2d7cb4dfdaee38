"""What a run will read, counted from its plan before it starts."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from unibert.corpus.manifest import Manifest
from unibert.errors import UserError
from unibert.schedules import Schedule, Timeline, value_at
from unibert.stream.config import StreamConfig
from unibert.stream.plan import Floats, build_plan, raise_if_no_room_for_text
from unibert.stream.stream import chosen_languages

WORTHWHILE_EPOCHS = 4.0
"""Text read up to about four times is nearly as good as new text, and each further time adds less (Muennighoff et al.
2023, arXiv 2305.16264; measured with decoders on English)."""

_MANY_SHARDS = 10_000

_USUAL_SHARD_TOKENS = 4_000_000
"""Default of ``unibert corpus build --tokens_per_shard``."""

MAX_PHASES = 5
"""Maximum number of phases; a table has no room for more."""

_MIN_DISTANCE = 0.005
"""Share of the run below which two changes count as one."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the run over which each schedule is constant or changes linearly."""

    start: float
    """Progress at the start."""
    end: float
    """Progress at the end."""
    exponents: tuple[float, float]
    """Sampling exponent at the start and just before the end."""
    num_sequences: int
    """Sequences per step, halfway."""
    sequence_length: int
    """Tokens per sequence, halfway."""
    tokens: Integers
    """Tokens drawn of each language in the phase, (L,)."""
    epochs: Floats
    """Times each language has been drawn between the start of the run and the end of the phase, (L,)."""
    documents_per_batch: Floats
    """Expected documents of each language in a batch, halfway, (L,). Each piece of a cut document counts; caps are
    ignored."""

    @property
    def shares(self) -> Floats:
        """Share of each language in the tokens drawn in the phase, (L,)."""
        return self.tokens / max(1, self.tokens.sum())


class Forecast:
    """Counts, by language, of what a run's plan draws.

    Tokens include those that frame each document. A draw that crosses a bound is divided there, so that phases add up
    to the run. Epochs count whole draws, as :meth:`Plan.epochs` does. A run pads one or two per cent of its tokens, so
    it gets that much less far in its plan than these figures say.

    Args:
        manifest: manifest of the corpus.
        config: ``stream`` section of the run file.
        seed: seed of the run.
        timeline: batch size and sequence length of every step.

    Raises:
        UserError: if the configuration's languages do not fit the corpus, or a sequence has no room for text.
    """

    def __init__(self, manifest: Manifest, config: StreamConfig, *, seed: int, timeline: Timeline) -> None:
        self.languages = chosen_languages(manifest, config)
        self.run_tokens = timeline.total_tokens
        self._config, self._timeline, self._frame_tokens = config, timeline, manifest.special_ids.frame_tokens
        shards = [manifest.shards_of(language) for language in self.languages]
        self._shard_counts = np.array([len(of_language) for of_language in shards])
        self._tokens = np.array([sum(shard.tokens for shard in of_language) for of_language in shards])
        self._documents = np.array([sum(shard.documents for shard in of_language) for of_language in shards])
        raise_if_no_room_for_text(timeline, manifest.special_ids)
        self._plan = build_plan(manifest, self.languages, config, seed=seed, run_tokens=self.run_tokens)
        self._draws, self._bounds = self._draw()

    @property
    def num_draws(self) -> int:
        """Number of shards that the run reads, repeats included."""
        return len(self._draws)

    @property
    def max_epochs(self) -> float | None:
        """``max_epochs`` of the configuration."""
        return self._config.max_epochs

    @property
    def natural_shares(self) -> Floats:
        """Share of each language in the train tokens of the run's languages, (L,)."""
        return self._tokens / self._tokens.sum()

    @cached_property
    def tokens(self) -> Integers:
        """Tokens drawn of each language over the run, (L,); their sum is the tokens of the run."""
        return self.tokens_between(0.0, 1.0)

    @cached_property
    def epochs(self) -> Floats:
        """Times each language is drawn over the run, (L,)."""
        return self.epochs_at(1.0)

    def tokens_between(self, start: float, end: float) -> Integers:
        """Return the tokens of each language drawn from progress ``start`` to ``end``, (L,)."""
        sizes = np.diff(self._bounds.clip(round(start * self.run_tokens), round(end * self.run_tokens)))
        return np.bincount(self._draws, weights=sizes, minlength=len(self.languages)).astype(np.int64)

    def epochs_at(self, progress: float) -> Floats:
        """Return how often each language has been drawn at ``progress``, (L,); whole numbers are whole epochs."""
        end = int(np.searchsorted(self._bounds[:-1], progress * self.run_tokens))
        return np.bincount(self._draws[:end], minlength=len(self.languages)) / self._shard_counts

    @cached_property
    def phases(self) -> list[Phase]:
        """The run, divided where its schedules change, into at most :data:`MAX_PHASES` phases."""
        return [self._phase(start, end) for start, end in pairwise(phase_bounds(self._config, self._timeline))]

    @cached_property
    def first_read(self) -> dict[str, float]:
        """Progress at which each language is first drawn; a language that the run never reads has no entry."""
        languages, first = np.unique(self._draws, return_index=True)
        return {self.languages[language]: self._progress(draw) for language, draw in zip(languages, first, strict=True)}

    @cached_property
    def reached_cap(self) -> dict[str, float]:
        """Progress at which languages have been drawn ``max_epochs`` times and leave the mixture, earliest first."""
        if self._config.max_epochs is None:
            return {}
        reached = {}
        for language, num_shards in enumerate(self._shard_counts):
            last = math.floor(num_shards * self._config.max_epochs) - 1
            draws = np.flatnonzero(self._draws == language)
            if len(draws) > last:
                reached[self.languages[language]] = min(1.0, self._progress(int(draws[last]) + 1))
        return dict(sorted(reached.items(), key=lambda entry: entry[1]))

    @property
    def often_repeated(self) -> dict[str, float]:
        """Languages read more than :data:`WORTHWHILE_EPOCHS` times, most often first, with their epochs."""
        epochs = dict(zip(self.languages, self.epochs.tolist(), strict=True))
        repeated = {code: times for code, times in epochs.items() if times > WORTHWHILE_EPOCHS}
        return dict(sorted(repeated.items(), key=lambda entry: -entry[1]))

    @cached_property
    def languages_at_a_time(self) -> tuple[int, float, int]:
        """Languages among the shards that all lanes hold at a time: minimum, median and maximum over the run."""
        held = min(self._config.lanes * self._config.window_shards, self.num_draws)
        windows = np.sort(self._draws[: self.num_draws // held * held].reshape(-1, held))
        counts = 1 + (np.diff(windows) > 0).sum(axis=1)
        return int(counts.min()), float(np.median(counts)), int(counts.max())

    @cached_property
    def shortage(self) -> str | None:
        """Why ``max_epochs`` leaves too little text for the run and how to fix it; None if there is enough."""
        try:
            self._plan.check_supply(self._config.lanes)
        except UserError as error:
            return str(error)
        return None

    def _draw(self) -> tuple[npt.NDArray[np.int16], Integers]:
        """Return the language of every draw, (D,), and the framed tokens before each and after the last, (D + 1,)."""
        languages, bounds = array("h"), array("q", [0])
        with tqdm(
            total=self.run_tokens,
            desc="planning",
            unit="token",
            unit_scale=True,
            leave=False,
            delay=1,
            disable=not os.isatty(2),
        ) as bar:
            while bounds[-1] < self.run_tokens:
                draw = self._plan[len(languages)]
                tokens = self._plan.framed_tokens(draw.shard)
                languages.append(draw.language)
                bounds.append(bounds[-1] + tokens)
                bar.update(tokens)
        return np.array(languages), np.array(bounds)

    def _progress(self, draw: int) -> float:
        return float(self._bounds[draw] / self.run_tokens)

    def _phase(self, start: float, end: float) -> Phase:
        middle, exponent = (start + end) / 2, self._config.sampling_exponent
        step = [step for step in self._timeline.phases() if step.progress <= middle][-1]
        shares = self._plan.document_shares(middle, step.sequence_length)
        pieces = self._documents * self._plan.pieces_per_document(step.sequence_length)
        framed_piece = self._tokens / pieces + self._frame_tokens
        return Phase(
            start=start,
            end=end,
            exponents=(value_at(exponent, start), value_at(exponent, math.nextafter(end, 0))),
            num_sequences=step.num_sequences,
            sequence_length=step.sequence_length,
            tokens=self.tokens_between(start, end),
            epochs=self.epochs_at(end),
            documents_per_batch=shares * step.num_tokens / (shares * framed_piece).sum(),
        )


def phase_bounds(config: StreamConfig, timeline: Timeline) -> list[float]:
    """Return the progress values at which mixture, batch size or sequence length change, from 0 to 1.

    Phases over which the exponent changes are halved if there is room for that; if there are too many phases, the
    shortest are merged with a neighbour.
    """
    points = {0.0, 1.0, *_points(config.sampling_exponent), *config.language_starts.values()}
    steps = [step.progress for step in timeline.phases()]
    # Batches change at the step next to a point of their schedule; the same point of another schedule stands for both.
    separate = [step for step in steps if min(abs(step - point) for point in points) >= _MIN_DISTANCE]
    bounds = _merged(sorted({*points, *separate}))
    halves = [(start + end) / 2 for start, end in pairwise(bounds) if _changes(config.sampling_exponent, start, end)]
    return sorted([*bounds, *halves]) if len(bounds) + len(halves) <= MAX_PHASES + 1 else bounds


def mixing_warning(config: StreamConfig, num_languages: int) -> str | None:
    """Return a warning if a batch cannot hold all languages because the lanes' windows hold fewer shards, else None."""
    mixed = config.lanes * config.window_shards
    if mixed >= num_languages:
        return None
    return (
        f"{config.lanes} lanes of {config.window_shards} shards mix at most {mixed} of the corpus's {num_languages} "
        "languages at a time; raise stream.window_shards or stream.lanes"
    )


def loaders_warning(config: StreamConfig, world_size: int) -> str | None:
    """Return a warning if ranks have fewer loader processes than asked for, since each needs a lane, else None."""
    lanes = config.lanes // world_size
    if config.num_workers <= lanes:
        return None
    return (
        f"stream.num_workers is {config.num_workers}, but {config.lanes} lanes on {world_size} ranks leave {lanes} for "
        f"each, so a rank has {lanes} loader process{'es' if lanes > 1 else ''}"
    )


def shards_warning(manifest: Manifest, languages: Sequence[str]) -> str | None:
    """Return a warning if the corpus has many shards because they are needlessly small, else None.

    A start reads what the manifest says about each of them, and a window opens files instead of reading them.
    """
    counts = [len(manifest.shards_of(language)) for language in languages]
    tokens = [manifest.tokens(language) for language in languages]
    sufficient = sum(-(-each // _USUAL_SHARD_TOKENS) for each in tokens)
    if sum(counts) < max(_MANY_SHARDS, 10 * sufficient):
        return None
    return (
        f"the corpus has {sum(counts):,} train shards of {sum(tokens) // sum(counts):,} tokens on average, which slow "
        f"down starts and windows; built with --tokens_per_shard {_USUAL_SHARD_TOKENS}, it would have {sufficient:,}"
    )


def _points(schedule: Schedule) -> list[float]:
    return [progress for progress, _ in schedule] if isinstance(schedule, list) else []


def _changes(schedule: Schedule, start: float, end: float) -> bool:
    return value_at(schedule, start) != value_at(schedule, (start + end) / 2)


def _merged(bounds: Sequence[float]) -> list[float]:
    bounds = list(bounds)
    while len(bounds) > MAX_PHASES + 1:
        lengths = [end - start for start, end in pairwise(bounds)]
        shortest = min(range(len(lengths)), key=lengths.__getitem__)
        before = lengths[shortest - 1] if shortest else math.inf
        after = lengths[shortest + 1] if shortest + 1 < len(lengths) else math.inf
        del bounds[shortest if before < after else shortest + 1]
    return bounds
