"""The stream: one rank's sequences of every step, from global batches that are the same for any number of ranks."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import Any

from unibert.corpus.manifest import Manifest
from unibert.errors import UserError
from unibert.schedules import Step, Timeline, value_at
from unibert.stream.background import Background
from unibert.stream.batch import Batch
from unibert.stream.config import DELIVERY_KEYS, StreamConfig
from unibert.stream.lane import Lane
from unibert.stream.loader_processes import produce_in_processes
from unibert.stream.masking import mask
from unibert.stream.plan import Floats, PlanPast, build_plan, raise_if_no_room_for_text
from unibert.stream.randomness import Purpose
from unibert.stream.sequences import MaskedSequences, Sequences
from unibert.stream.skips import Skips, pass_over
from unibert.stream.source import ShardSource, check_shards_exist
from unibert.stream.vocabulary import Vocabulary
from unibert.stream.words import word_starts


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of a step's global batch."""

    step: Step
    sequences: MaskedSequences
    """Sequences in global order; those of all ranks, one rank after the other, are the global batch."""
    state: dict[str, Any]
    """State after the step, fit for JSON: lane number → state for this rank's lanes, and the stream's ``fingerprint``.
    The merged states of all ranks resume the run on any number of ranks."""
    skipped: dict[str, int]
    """Damaged blocks that were met in this step, by shard."""

    def micro_batches(self, micro_batch_size: int) -> list[Batch]:
        """Return the sequences in order, ``micro_batch_size`` per batch; the last batch may be smaller."""
        num_sequences = self.sequences.num_sequences
        return [
            Batch.from_sequences(self.sequences, first, min(first + micro_batch_size, num_sequences))
            for first in range(0, num_sequences, micro_batch_size)
        ]


class Stream:
    """Batches of a run as a pure function of (seed, config, manifest, step).

    The run has ``config.lanes`` lanes, whatever the world size; every rank owns equally many neighbouring ones. Each
    lane gives the same number of sequences to every step, so that all ranks always have the same number and none ends
    before another.

    Args:
        corpus_dir: folder made by ``unibert corpus build``.
        config: ``stream`` section of the run file.
        seed: seed of the run.
        timeline: batch size and sequence length of every step.
        rank: index of this rank.
        world_size: number of ranks.
        with_vectors: whether batches have the vectors of the corpus's teacher.
        past: what a branch takes over, see `unibert.stream.past`.
        skips: data to pass over. Not part of the fingerprint: the steps before it are those of the stream without.
        manifest: that of the corpus, if it has been read.
        check_shards: whether to check that every shard is there. Of many ranks, one does it for all.

    Raises:
        UserError: if the manifest is unusable, a shard is missing, a language is unknown or has no train tokens, no
            language takes part from the start, ranks do not divide the lanes or lanes the sequences, ``max_epochs``
            leaves too little text, whole words are to be masked and the tokenizer cannot be loaded, or the corpus has
            no vectors for these sequences.
    """

    def __init__(
        self,
        corpus_dir: str | os.PathLike[str],
        config: StreamConfig,
        *,
        seed: int,
        timeline: Timeline,
        rank: int = 0,
        world_size: int = 1,
        with_vectors: bool = False,
        past: PlanPast | None = None,
        skips: Skips | None = None,
        manifest: Manifest | None = None,
        check_shards: bool = True,
    ) -> None:
        self._corpus_dir, self._config, self._seed, self._timeline = Path(corpus_dir), config, seed, timeline
        self.manifest = Manifest.load(corpus_dir) if manifest is None else manifest
        self._vocabulary = Vocabulary.of_corpus(self.manifest)
        self.languages = chosen_languages(self.manifest, config)
        config.raise_if_world_size_does_not_fit(world_size)
        if past is None:
            # A branch may have other lanes than its parent, whose batches are past; those of its own are checked when
            # its run file is read.
            config.raise_if_batches_do_not_fit(timeline)
        raise_if_no_room_for_text(timeline, self.manifest.special_ids)
        self._piece_length = self.manifest.piece_length if with_vectors else None
        if with_vectors:
            self.manifest.teaching_for(self._corpus_dir, timeline.sequence_lengths)
        train_shards = [shard for language in self.languages for shard in self.manifest.shards_of(language)]
        self._train_blocks = sum(shard.blocks for shard in train_shards)
        self._source = ShardSource(self._corpus_dir, config)
        self._train_shards = train_shards
        if check_shards:
            self.check_shards_exist()
        self._past, self._skips = past, {} if skips is None else skips
        self._plan = build_plan(
            self.manifest, self.languages, config, seed=seed, run_tokens=timeline.total_tokens, past=past
        )
        self._plan.check_supply(config.lanes)
        self._word_starts = word_starts(self._corpus_dir, self.manifest.vocab_size) if config.whole_words else None
        lanes_per_rank = config.lanes // world_size
        self._lanes = range(rank * lanes_per_rank, (rank + 1) * lanes_per_rank)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that the batches depend on; equal fingerprints mean equal batches."""
        content = {key: value for key, value in asdict(self._config).items() if key not in DELIVERY_KEYS}
        phases = [(phase.index, phase.num_sequences, phase.sequence_length) for phase in self._timeline.phases()]
        parts = [self.manifest.fingerprint, content, self._seed, phases, self._timeline.total_tokens]
        if self._past is not None:
            parts.append(asdict(self._past))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def check_shards_exist(self) -> None:
        """Check that every train shard exists; see `unibert.stream.source.check_shards_exist`."""
        check_shards_exist(self._source, self._train_shards)

    @property
    def shards_folder(self) -> Path | None:
        """Folder of the shards; None if they are on a server."""
        return self._source.folder

    @property
    def damage_limit(self) -> int:
        """Maximum number of damaged blocks in the train split, from ``max_damaged_share``."""
        return ceil(self._config.max_damaged_share * self._train_blocks)

    def document_shares(self, progress: float) -> Floats:
        """Return the expected share of each language in a batch's documents at ``progress``, caps ignored, (L,)."""
        phases = [phase for phase in self._timeline.phases() if phase.progress <= progress]
        return self._plan.document_shares(progress, phases[-1].sequence_length)

    def epochs(self, progress: float) -> Floats:
        """Return how often each language's train split is drawn up to ``progress``, (L,)."""
        return self._plan.epochs(progress)

    def steps(self, first_step: int = 0, state: Mapping[str, Any] | None = None) -> Generator[StepBatch]:
        """Yield this rank's sequences of step ``first_step`` and of all later steps.

        With ``state``, the merged states of all lanes after the previous step, the stream starts at once. Without, it
        reads the shards up to ``first_step`` again. Close the iterator to end its loader processes early.

        Raises:
            UserError: if the state belongs to another stream or lacks a lane, or a shard cannot be read.
        """
        if state is not None and state.get("fingerprint") != self.fingerprint:
            raise UserError(
                f"{self._corpus_dir}: the stream's saved state belongs to another corpus, seed, stream configuration "
                "or schedule of batches; resume with those of the run, or start a new run"
            )
        if state is not None and (missing := [lane for lane in self._lanes if str(lane) not in state]):
            raise UserError(f"the stream's saved state has no lane {missing[0]}; merge the states of all ranks")
        produce = partial(self._lane_steps, first_step=first_step, state=state)
        if self._config.num_workers:
            parts_of_steps = produce_in_processes(
                produce, self._lanes, self._config.num_workers, self._config.prefetch_steps
            )
        else:
            parts_of_steps = ([part] for part in produce(self._lanes))
        for parts in parts_of_steps:
            yield StepBatch(
                step=parts[0].step,
                sequences=MaskedSequences.concatenate([part.sequences for part in parts]),
                state={"fingerprint": self.fingerprint} | {key: of for part in parts for key, of in part.state.items()},
                skipped=_sum_counts([part.skipped for part in parts]),
            )

    def _lane_steps(
        self, lane_indices: Sequence[int], first_step: int, state: Mapping[str, Any] | None
    ) -> Iterator[StepBatch]:
        """Yield the steps of some consecutive lanes."""
        with closing(Background()) as background:
            yield from self._steps_of_lanes(lane_indices, first_step, state, background)

    def _steps_of_lanes(
        self, lane_indices: Sequence[int], first_step: int, state: Mapping[str, Any] | None, background: Background
    ) -> Iterator[StepBatch]:
        num_lanes = self._config.lanes
        lanes = {
            index: Lane(
                index,
                num_lanes=num_lanes,
                window_shards=self._config.window_shards,
                plan=self._plan,
                source=self._source,
                vocabulary=self._vocabulary,
                seed=self._seed,
                background=background,
                piece_length=self._piece_length,
                state=None if state is None else state[str(index)],
            )
            for index in lane_indices
        }
        if state is None:
            for lane in lanes.values():
                for step in map(self._timeline.__getitem__, range(first_step)):
                    pass_over([lane], self._skips, step.index, self._timeline, num_lanes)
                    lane.skip(step.num_sequences // num_lanes, step.sequence_length)
                lane.collect_skipped()
        for step in map(self._timeline.__getitem__, range(first_step, len(self._timeline))):
            sequences_per_lane = step.num_sequences // num_lanes
            pass_over(lanes.values(), self._skips, step.index, self._timeline, num_lanes)
            sequences = Sequences.concatenate(
                [lane.take(sequences_per_lane, step.sequence_length) for lane in lanes.values()]
            )
            masked = mask(
                sequences,
                seed=self._seed,
                purpose=Purpose.MASKING,
                first_sequence=step.first_sequence + lane_indices[0] * sequences_per_lane,
                rate=value_at(self._config.masking_rate, step.progress),
                mask_share=self._config.mask_share,
                random_share=self._config.random_share,
                vocabulary=self._vocabulary,
                word_starts=self._word_starts,
            )
            yield StepBatch(
                step=step,
                sequences=masked,
                state={str(index): lane.state for index, lane in lanes.items()},
                skipped=_sum_counts([lane.collect_skipped() for lane in lanes.values()]),
            )


def chosen_languages(manifest: Manifest, config: StreamConfig) -> list[str]:
    """Return the sorted codes of the languages to train on.

    Raises:
        UserError: if one is not in the corpus or has no train tokens, or none takes part from the start.
    """
    languages = sorted(set(manifest.languages if config.languages is None else config.languages))
    for language in config.language_starts:
        if language not in languages:
            raise UserError(
                f"stream.language_starts.{language}: the run does not train on it, only on {', '.join(languages)}"
            )
    if languages and min(config.language_starts.get(language, 0.0) for language in languages) > 0:
        raise UserError("stream.language_starts: no language takes part from the start; let at least one start at 0")
    for language in languages:
        if language not in manifest.languages:
            raise UserError(
                f"stream.languages: the corpus has no train shards of {language!r}; it has "
                f"{', '.join(manifest.languages) or 'none'}"
            )
        if not manifest.tokens(language):
            raise UserError(
                f"stream.languages: the train shards of {language!r} hold no tokens; leave it out or build the corpus "
                "again"
            )
    if not languages:
        raise UserError("stream.languages: the corpus has no train shards; build it from more text")
    return languages


def _sum_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for key, value in count.items():
            total[key] = total.get(key, 0) + value
    return total
