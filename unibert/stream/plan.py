"""The plan of a run: which shard it reads at its n-th draw."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from unibert.corpus.manifest import Manifest, Shard
from unibert.corpus.special_ids import SpecialIds
from unibert.errors import UserError
from unibert.schedules import Schedule, Timeline, value_at
from unibert.stream.config import StreamConfig
from unibert.stream.randomness import Purpose, permutation, random_words

_UNIFORMS_PER_CHUNK = 1024

Floats = npt.NDArray[np.float64]


class Draw(NamedTuple):
    """One shard to read: ``epoch`` counts how often its language was read before."""

    language: int
    epoch: int
    shard: Shard


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How a run mixes its languages; see :class:`Plan`."""

    run_tokens: int
    exponent: Schedule
    starts: Sequence[float]
    max_epochs: float | None


@dataclass(frozen=True, kw_only=True)
class PlanPast:
    """What a plan takes over from runs before its own."""

    first_token: int = 0
    """Tokens of the run before the first draw, which were read from another plan."""
    mixtures: list[tuple[int, Mixture]] = field(default_factory=list)
    """Mixtures of the first draws, each with the number of the draw at which it ends, in order."""


class Plan:
    """An endless sequence of draws that follows the language mixture, indexed by draw number.

    Every draw picks a language at random among those whose tokens lag behind the mixture, weighted by the lag. This
    follows the mixture as closely as whole shards allow, yet without a period that could resonate with the lanes.
    Within a language, each epoch is a fresh permutation of all its shards. Draws are computed on first access and are
    a pure function of the arguments.

    A language that was read ``max_epochs`` times leaves the mixture. Once all that have joined have left, the caps are
    lifted, so that damaged shards cannot end a run early; :meth:`check_supply` refuses runs that would need this.

    Args:
        manifest: manifest of the corpus.
        languages: codes; their positions are the language indices of the draws.
        seed: seed of the run.
        run_tokens: tokens of the run, padding included; the plan's progress is the share of them drawn so far.
        exponent: exponent of the train tokens in the mixture, over progress.
        starts: progress at which each language joins the mixture; at least one is 0. None stands for all 0.
        max_epochs: cap on the epochs of every language, None for no cap.
        past: draws of earlier runs, whose mixtures this run only takes over at its own first draw.
    """

    def __init__(
        self,
        manifest: Manifest,
        languages: Sequence[str],
        *,
        seed: int,
        run_tokens: int,
        exponent: Schedule,
        starts: Sequence[float] | None = None,
        max_epochs: float | None = None,
        past: PlanPast | None = None,
    ) -> None:
        past = PlanPast() if past is None else past
        starts = [0.0] * len(languages) if starts is None else starts
        own = Mixture(run_tokens=run_tokens, exponent=exponent, starts=starts, max_epochs=max_epochs)
        self._shards = [manifest.shards_of(language) for language in languages]
        self._seed, self._own, self._first_token = seed, own, past.first_token
        self._past = past.mixtures
        self._tokens = np.array([sum(shard.tokens for shard in shards) for shards in self._shards], dtype=np.float64)
        self._documents = np.array([sum(shard.documents for shard in shards) for shards in self._shards], dtype=float)
        self._shard_counts = np.array([len(shards) for shards in self._shards])
        self._frame_tokens = manifest.special_ids.frame_tokens
        self._mean_shard = float((self._tokens + self._frame_tokens * self._documents).sum() / self._shard_counts.sum())

        self._draws: list[Draw] = []
        self._tokens_before: list[int] = []
        self._tokens_drawn = past.first_token
        self._exhausted_at: int | None = None
        self._counts = np.zeros(len(languages), dtype=np.int64)
        self._lag: Floats = np.zeros(len(languages))
        self._in_mixture = np.ones(len(languages), dtype=bool)
        self._orders: list[npt.NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(languages)
        self._uniforms: Floats = np.empty(0)
        self._begin_mixture()

    def __getitem__(self, index: int) -> Draw:
        while len(self._draws) <= index:
            self._draw()
        return self._draws[index]

    @property
    def num_shards(self) -> int:
        """Number of shards of all languages of the plan."""
        return int(self._shard_counts.sum())

    def framed_tokens(self, shard: Shard) -> int:
        """Return the tokens of a shard, the frames of its documents included."""
        return shard.tokens + self._frame_tokens * shard.documents

    def mixture(self, progress: float) -> Floats:
        """Return each language's share of the tokens drawn at ``progress``, caps ignored, (L,); 0 before it joins."""
        return self._shares(self._own, progress)

    def pieces_per_document(self, sequence_length: int) -> Floats:
        """Return the mean number of pieces into which a document of each language is cut, (L,).

        With exponentially distributed lengths of mean m, a document gives 1 / (1 - exp(-c / m)) pieces of at most c
        tokens.
        """
        return 1 / -np.expm1(-(sequence_length - self._frame_tokens) / (self._tokens / self._documents))

    def document_shares(self, progress: float, sequence_length: int) -> Floats:
        """Return the expected share of each language in a batch's documents, caps ignored, (L,).

        Each piece of a cut document counts as a document.
        """
        documents_per_token = self._documents / self._tokens
        shares = self.mixture(progress) * documents_per_token * self.pieces_per_document(sequence_length)
        return shares / shares.sum()

    def epochs(self, progress: float) -> Floats:
        """Return how often each language has been drawn at ``progress``, (L,); whole numbers are whole epochs."""
        while self._tokens_drawn < progress * self._own.run_tokens:
            self._draw()
        end = bisect_left(self._tokens_before, progress * self._own.run_tokens)
        counts = np.bincount([draw.language for draw in self._draws[:end]], minlength=len(self._shards))
        return counts / self._shard_counts

    def check_supply(self, lanes: int) -> None:
        """Check that every lane gets its share of the run before all languages reach their caps.

        Raises:
            UserError: if the caps leave too little text.
        """
        if self._own.max_epochs is None:
            return
        needed = (self._own.run_tokens - self._first_token) / lanes
        first_own_draw = self._past[-1][0] if self._past else 0
        supply = np.zeros(lanes)
        index = 0
        while supply.min() < needed:
            shard = self[index].shard
            if index == self._exhausted_at and index >= first_own_draw:
                raise UserError(
                    f"stream.max_epochs: with every language read at most {self._own.max_epochs:g} times, one of the "
                    f"{lanes} lanes gets only {supply.min() / needed:.0%} of the tokens that it needs (the corpus has "
                    f"{self.num_shards} shards); raise stream.max_epochs, lower training.tokens or stream.lanes, or "
                    "build a corpus with more or smaller shards"
                )
            supply[index % lanes] += self.framed_tokens(shard)
            index += 1

    def _shares(self, mixture: Mixture, progress: float) -> Floats:
        weights = self._tokens ** value_at(mixture.exponent, progress) * (np.array(mixture.starts) <= progress)
        return weights / weights.sum()

    def _begin_mixture(self) -> None:
        """Take the mixture of the next draw, and with it its caps."""
        self._mixture = next((one for end, one in self._past if len(self._draws) < end), self._own)
        epochs = self._mixture.max_epochs
        self._caps = np.floor(self._shard_counts * (np.inf if epochs is None else float(epochs)))
        for language in range(len(self._shards)):
            if self._counts[language] < self._caps[language] and not self._in_mixture[language]:
                self._in_mixture[language], self._lag[language] = True, 0.0
            elif self._counts[language] >= self._caps[language] and self._in_mixture[language]:
                self._retire(language)

    def _draw(self) -> None:
        if any(len(self._draws) == end for end, _ in self._past):
            self._begin_mixture()
        chunk, within_chunk = divmod(len(self._draws), _UNIFORMS_PER_CHUNK)
        if within_chunk == 0:
            words = random_words(_UNIFORMS_PER_CHUNK, self._seed, Purpose.MIXTURE, chunk)
            self._uniforms = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        shares = self._capped_mixture()
        if not shares.any():
            self._lift_caps()
            shares = self._capped_mixture()
        shares /= shares.sum()
        # Look one mean shard ahead, so that there is a choice when no language lags.
        cumulative = np.maximum(self._lag + shares * self._mean_shard, 0).cumsum()
        language = int(np.searchsorted(cumulative, self._uniforms[within_chunk] * cumulative[-1], side="right"))
        language = min(language, len(shares) - 1)

        shards = self._shards[language]
        epoch, within_epoch = divmod(int(self._counts[language]), len(shards))
        if within_epoch == 0:
            self._orders[language] = permutation(len(shards), self._seed, Purpose.EPOCH, language, epoch)
        shard = shards[self._orders[language][within_epoch]]
        self._draws.append(Draw(language, epoch, shard))
        self._tokens_before.append(self._tokens_drawn)

        tokens = self.framed_tokens(shard)
        self._tokens_drawn += tokens
        self._counts[language] += 1
        self._lag += shares * tokens
        self._lag[language] -= tokens
        if self._counts[language] == self._caps[language]:
            self._retire(language)

    def _capped_mixture(self) -> Floats:
        return self._shares(self._mixture, self._tokens_drawn / self._mixture.run_tokens) * self._in_mixture

    def _retire(self, language: int) -> None:
        self._in_mixture[language] = False
        # Lags must add up to 0 over the mixture, so that one of them is positive: the others take over this lag.
        shares = self._capped_mixture()
        if shares.any():
            self._lag += self._lag[language] * shares / shares.sum()
        self._lag[language] = -np.inf

    def _lift_caps(self) -> None:
        if self._exhausted_at is None:
            self._exhausted_at = len(self._draws)
        self._in_mixture[:] = True
        self._caps[:] = np.inf
        self._lag[:] = 0


def build_plan(
    manifest: Manifest,
    languages: Sequence[str],
    config: StreamConfig,
    *,
    seed: int,
    run_tokens: int,
    past: PlanPast | None = None,
) -> Plan:
    """Build the plan of a run with this configuration."""
    own = mixture_of(config, languages, run_tokens)
    return Plan(manifest, languages, seed=seed, past=past, **vars(own))


def mixture_of(config: StreamConfig, languages: Sequence[str], run_tokens: int) -> Mixture:
    """Return how a run with this configuration mixes its languages."""
    return Mixture(
        run_tokens=run_tokens,
        exponent=config.sampling_exponent,
        starts=[config.language_starts.get(language, 0.0) for language in languages],
        max_epochs=config.max_epochs,
    )


def raise_if_no_room_for_text(timeline: Timeline, special_ids: SpecialIds) -> None:
    """Raise UserError if the shortest sequences of a run hold only the special tokens that frame a document."""
    shortest = min(phase.sequence_length for phase in timeline.phases())
    if shortest <= special_ids.frame_tokens:
        raise UserError(
            f"training.sequence_length: {shortest} leaves no room for text between the {special_ids.frame_tokens} "
            "special tokens that frame a document; raise it"
        )
