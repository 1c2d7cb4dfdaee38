"""The global batch of a step depends on seed, config and manifest alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unibert.schedules import Timeline
from unibert.stream import Stream, StreamConfig
from unibert.stream.sequences import MaskedSequences

# Batch size and sequence length change during the run, and so within a window of every lane.
TIMELINE = Timeline(48_000, [(0.0, 16), (0.6, 24)], [(0.0, 64), (0.35, 128), (0.8, 64)])
SAMPLING: Any = [(0.0, 0.7), (1.0, 0.3)]

# More processes than cores are slow, which does not matter here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

Global = dict[int, list[str]]


def config(**changes: Any) -> StreamConfig:
    return StreamConfig(**{"lanes": 8, "window_shards": 2, "sampling_exponent": SAMPLING} | changes)


def run(
    corpus: Path,
    *,
    world_size: int,
    num_workers: int,
    first_step: int = 0,
    end_step: int | None = None,
    state: dict[str, Any] | None = None,
) -> tuple[Global, dict[str, Any]]:
    """Return digests of every sequence of the global batches, and the merged state after the last step."""
    digests: Global = {}
    merged: dict[str, Any] = {}
    for rank in range(world_size):
        stream = Stream(
            corpus, config(num_workers=num_workers), seed=7, timeline=TIMELINE, rank=rank, world_size=world_size
        )
        steps = stream.steps(first_step, state)
        for step in steps:
            digests.setdefault(step.step.index, []).extend(batch.digest() for batch in step.micro_batches(1))
            if step.step.index + 1 == end_step:
                break
        steps.close()
        merged |= json.loads(json.dumps(step.state))
    return digests, merged


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path) -> Global:
    digests, _ = run(corpus, world_size=1, num_workers=0)
    assert [len(digests[i]) for i in range(len(TIMELINE))] == [step.num_sequences for step in TIMELINE]
    return digests


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_world_size_and_workers_do_not_matter(
    corpus: Path, uninterrupted: Global, world_size: int, num_workers: int
) -> None:
    # Loader processes take a second each to start and stop; with them, one rank of four is tested.
    if num_workers and world_size == 4:
        stream = Stream(corpus, config(num_workers=num_workers), seed=7, timeline=TIMELINE, rank=2, world_size=4)
        for step in stream.steps():
            per_rank = step.step.num_sequences // 4
            expected = uninterrupted[step.step.index][2 * per_rank : 3 * per_rank]
            assert [batch.digest() for batch in step.micro_batches(1)] == expected
    else:
        assert run(corpus, world_size=world_size, num_workers=num_workers)[0] == uninterrupted


@pytest.mark.parametrize("with_state", [True, False])
def test_interruptions_do_not_matter(corpus: Path, uninterrupted: Global, with_state: bool) -> None:
    generator = np.random.default_rng(3)
    for _ in range(3):
        stops = sorted({int(stop) for stop in generator.integers(1, len(TIMELINE), 3)})
        digests: Global = {}
        state, first = None, 0
        for stop in [*stops, len(TIMELINE)]:
            world_size = int(generator.choice([1, 2, 4, 8]))
            part, merged = run(
                corpus, world_size=world_size, num_workers=0, first_step=first, end_step=stop, state=state
            )
            digests |= part
            state, first = merged if with_state else None, stop
        assert digests == uninterrupted, stops


def test_resuming_with_loader_processes(corpus: Path, uninterrupted: Global) -> None:
    stop = len(TIMELINE) // 2
    _, state = run(corpus, world_size=2, num_workers=0, end_step=stop)
    rest, _ = run(corpus, world_size=1, num_workers=2, first_step=stop, state=state)
    assert rest == {index: digest for index, digest in uninterrupted.items() if index >= stop}


def test_checksums_add_up_over_ranks_and_distinguish_batches(corpus: Path) -> None:
    def sequences(rank: int, world_size: int, **changes: Any) -> MaskedSequences:
        stream = Stream(corpus, config(**changes), seed=7, timeline=TIMELINE, rank=rank, world_size=world_size)
        return next(stream.steps()).sequences

    whole = sequences(0, 1)
    assert sum(sequences(rank, 4).checksum() for rank in range(4)) == whole.checksum()
    assert sequences(0, 1, mask_share=0.5).checksum() != whole.checksum(), "inputs"
    swapped = [1, 0, *range(2, whole.num_sequences)]
    for change in (
        {"input_ids": whole.input_ids[swapped], "labels": whole.labels[swapped]},
        {"labels": np.where(whole.labels == whole.labels.max(), -100, whole.labels)},
    ):
        assert replace(whole, **change).checksum() != whole.checksum()


def test_sequences_are_numbered_over_the_run(corpus: Path) -> None:
    numbers = [
        [
            step.sequences.sequence_indices
            for step in Stream(corpus, config(), seed=7, timeline=TIMELINE, **ranks).steps()
        ]
        for ranks in ({"rank": 0, "world_size": 2}, {"rank": 1, "world_size": 2})
    ]
    in_order = [number for parts in zip(*numbers, strict=True) for part in parts for number in part.tolist()]
    assert in_order == list(range(TIMELINE.num_sequences))


def test_micro_batches_are_slices_of_the_rank(corpus: Path) -> None:
    step = next(Stream(corpus, config(), seed=7, timeline=TIMELINE).steps())
    (whole,) = step.micro_batches(16)
    parts = step.micro_batches(5)
    assert [len(part.input_ids) for part in parts] == [5, 5, 5, 1]
    for name in ("input_ids", "labels", "position_ids", "sequence_indices", "document_languages"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert [origins for part in parts for origins in part.origins] == whole.origins
    for part in parts:
        assert part.document_ids.max() + 1 == len(part.document_languages) == sum(map(len, part.origins))
        assert torch.equal(part.masked_positions, (part.labels.flatten() != -100).nonzero().flatten())


def test_other_seeds_give_other_batches(corpus: Path, uninterrupted: Global) -> None:
    step = next(Stream(corpus, config(), seed=8, timeline=TIMELINE).steps())
    assert not {batch.digest() for batch in step.micro_batches(1)} & set(uninterrupted[0])


def test_global_random_state_is_unchanged(corpus: Path) -> None:
    before = torch.get_rng_state()
    steps = Stream(corpus, config(num_workers=1), seed=7, timeline=TIMELINE).steps()
    next(steps)
    steps.close()
    assert torch.equal(torch.get_rng_state(), before)
