"""The stream: one rank's rows of every step, the same global batches whoever asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unibert.corpus.manifest import Manifest, Shard
from unibert.errors import UserError
from unibert.schedules import Step, Timeline, value_at
from unibert.stream.batch import Batch
from unibert.stream.config import StreamConfig
from unibert.stream.lane import Lane
from unibert.stream.loader_processes import produce_in_processes
from unibert.stream.masking import mask
from unibert.stream.plan import FRAME_TOKENS, Floats, Plan
from unibert.stream.randomness import Purpose
from unibert.stream.rows import MaskedRows


@dataclass(frozen=True)
class StepRows:
    """One rank's share of a step."""

    step: Step
    rows: MaskedRows
    """In global order; the ranks' rows one after the other are the global batch."""
    state: dict[str, Any]
    """Of this rank's lanes after the step: lane number → state, fit for JSON. Merge the ranks' to resume anywhere."""
    skipped: dict[str, int]
    """Damaged blocks by shard that were met in this step."""

    def micro_batches(self, micro_batch_size: int) -> list[Batch]:
        """The rows in order, ``micro_batch_size`` at a time; the last batch may be smaller."""
        num_rows = len(self.rows.input_ids)
        return [
            Batch.from_rows(self.rows, first, min(first + micro_batch_size, num_rows))
            for first in range(0, num_rows, micro_batch_size)
        ]


class Stream:
    """Batches of a run as a pure function of (seed, config, manifest, step).

    The run has ``config.lanes`` lanes, whatever the world size; rank r of R owns the r-th R-th of them. Each lane
    gives the same number of rows to every step, so that all ranks always have the same number of rows and none ends
    before another.

    Args:
        corpus_dir: folder made by ``unibert corpus build``.
        config: the run file's ``stream`` section.
        seed: of the run.
        timeline: batch size and sequence length of every step.
        rank: of this process.
        world_size: number of ranks.

    Raises:
        UserError: if the manifest is unusable, a shard is missing, a language has no train tokens, the lanes do not
            divide among ranks or sequences, or ``max_epochs`` leaves too little for the run.
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
    ) -> None:
        self._corpus_dir, self._config, self._seed, self._timeline = Path(corpus_dir), config, seed, timeline
        self.manifest = Manifest.load(corpus_dir)
        self.vocab_size = self.manifest.vocab_size
        self.languages = chosen_languages(self.manifest, config)
        if config.lanes % world_size:
            allowed = ", ".join(str(size) for size in range(1, config.lanes + 1) if config.lanes % size == 0)
            raise UserError(
                f"stream.lanes: {config.lanes} lanes cannot be shared by {world_size} ranks; start {allowed} ranks, or "
                "a new run with other stream.lanes"
            )
        for phase in timeline.phases():
            if phase.num_sequences % config.lanes:
                raise UserError(
                    f"training.global_batch_size: {phase.num_sequences} is not a multiple of stream.lanes "
                    f"({config.lanes}); change one of them"
                )
            if phase.sequence_length <= FRAME_TOKENS:
                raise UserError(
                    f"training.sequence_length: {phase.sequence_length} leaves no room between <s> and </s>; raise it"
                )
        train_shards = [shard for language in self.languages for shard in self.manifest.of(language)]
        check_shards_exist(self._corpus_dir, train_shards)
        self._plan = Plan(
            self.manifest,
            self.languages,
            seed=seed,
            run_tokens=timeline.total_tokens,
            exponent=config.sampling_exponent,
            max_epochs=config.max_epochs,
        )
        self._plan.check_supply(config.lanes)
        lanes_per_rank = config.lanes // world_size
        self._lanes = range(rank * lanes_per_rank, (rank + 1) * lanes_per_rank)

    def document_shares(self, progress: float) -> Floats:
        """Expected share of each language in the documents of a batch at ``progress``, (L,); caps left aside."""
        phases = [phase for phase in self._timeline.phases() if phase.progress <= progress]
        return self._plan.document_shares(progress, phases[-1].sequence_length)

    def epochs(self, progress: float) -> Floats:
        """Times each language's train split is drawn up to ``progress``, (L,)."""
        return self._plan.epochs(progress)

    def steps(self, first_step: int = 0, state: Mapping[str, Any] | None = None) -> Iterator[StepRows]:
        """This rank's rows of step ``first_step`` and of all after it.

        With ``state``, the merged states of all lanes after the step before, the stream starts at once; without, it
        goes through the shards up to ``first_step`` again. Close the iterator to end its loader processes early.

        Raises:
            UserError: if the state lacks a lane, or a shard cannot be read.
        """
        if state is not None and (missing := [lane for lane in self._lanes if str(lane) not in state]):
            raise UserError(
                f"the stream's saved state has no lane {missing[0]}: it belongs to a run with other stream.lanes; "
                "resume with the run's own configuration"
            )
        produce = partial(self._lane_steps, first_step=first_step, state=state)
        if self._config.num_workers:
            parts_of_steps = produce_in_processes(produce, self._lanes, self._config.num_workers)
        else:
            parts_of_steps = ([part] for part in produce(self._lanes))
        for parts in parts_of_steps:
            yield StepRows(
                step=parts[0].step,
                rows=MaskedRows.concatenate([part.rows for part in parts]),
                state={lane: lane_state for part in parts for lane, lane_state in part.state.items()},
                skipped=_sum_counts([part.skipped for part in parts]),
            )

    def _lane_steps(
        self, lane_indices: Sequence[int], first_step: int, state: Mapping[str, Any] | None
    ) -> Iterator[StepRows]:
        num_lanes = self._config.lanes
        lanes = {
            index: Lane(
                index,
                num_lanes=num_lanes,
                window_shards=self._config.window_shards,
                plan=self._plan,
                corpus_dir=self._corpus_dir,
                vocab_size=self.vocab_size,
                seed=self._seed,
                state=None if state is None else state[str(index)],
            )
            for index in lane_indices
        }
        if state is None:
            for lane in lanes.values():
                for step in map(self._timeline.__getitem__, range(first_step)):
                    lane.skip(step.num_sequences // num_lanes, step.sequence_length)
                lane.collect_skipped()
        for step in map(self._timeline.__getitem__, range(first_step, len(self._timeline))):
            rows_per_lane = step.num_sequences // num_lanes
            masked = [
                mask(
                    lane.take(rows_per_lane, step.sequence_length),
                    seed=self._seed,
                    purpose=Purpose.MASKING,
                    first_sequence=step.first_sequence + index * rows_per_lane,
                    rate=value_at(self._config.masking_rate, step.progress),
                    mask_share=self._config.mask_share,
                    random_share=self._config.random_share,
                    vocab_size=self.vocab_size,
                )
                for index, lane in lanes.items()
            ]
            yield StepRows(
                step=step,
                rows=MaskedRows.concatenate(masked),
                state={str(index): lane.state for index, lane in lanes.items()},
                skipped=_sum_counts([lane.collect_skipped() for lane in lanes.values()]),
            )


def chosen_languages(manifest: Manifest, config: StreamConfig) -> list[str]:
    """Sorted codes of the languages to train on.

    Raises:
        UserError: if one is not in the corpus or has no train tokens.
    """
    languages = sorted(set(manifest.languages if config.languages is None else config.languages))
    for language in languages:
        if language not in manifest.languages:
            raise UserError(
                f"stream.languages: the corpus has no train shards of {language!r}; it has "
                f"{', '.join(manifest.languages) or 'none of any language'}"
            )
        if not manifest.tokens(language):
            raise UserError(
                f"stream.languages: the train shards of {language!r} hold no tokens; leave it out or build it again"
            )
    if not languages:
        raise UserError("stream.languages: the corpus has no train shards; build it from more text")
    return languages


def check_shards_exist(corpus_dir: Path, shards: Sequence[Shard]) -> None:
    """Look for every shard by listing each folder once, which is kinder to a network file system than a look at each.

    Raises:
        UserError: naming the first shard that is missing.
    """
    present: dict[Path, set[str]] = {}
    for shard in shards:
        folder, name = (corpus_dir / shard.path).parent, Path(shard.path).name
        if folder not in present:
            present[folder] = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        if name not in present[folder]:
            raise UserError(f"{corpus_dir / shard.path}: missing shard; copy it there or build the corpus again")


def _sum_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for key, value in count.items():
            total[key] = total.get(key, 0) + value
    return total
