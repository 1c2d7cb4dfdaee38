"""For any corpus and configuration, ranks, processes and interruptions leave every bit of every batch unchanged."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stream.conftest import write_corpus
from unibert.schedules import Timeline
from unibert.stream import Stream, StreamConfig

# More processes than cores are slow, which does not matter here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

LANES = 8
State = dict[str, Any]


@dataclass(frozen=True)
class RunPart:
    """A part of a run between two interruptions."""

    end: float
    """Share of the run's steps at which it is interrupted."""
    world_size: int
    num_workers: int


@dataclass(frozen=True)
class Case:
    documents: dict[str, int]
    tokens_per_shard: int
    tokens_per_block: int
    config: dict[str, Any]
    timeline: Timeline
    seed: int
    run_parts: tuple[RunPart, ...]


def points(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A constant, or a schedule of two or three points."""
    middle = st.floats(0.1, 0.9)
    return values | st.builds(
        lambda first, at, then, last: [(0.0, first), (at, then)] + ([] if last is None else [(1.0, last)]),
        values,
        middle,
        values,
        st.none() | values,
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    documents = draw(st.dictionaries(st.sampled_from(["da", "fi", "is", "zh"]), st.integers(1, 60), min_size=1))
    joining = sorted(documents)[1:]
    sizes = st.sampled_from([8, 16, 24])
    lengths = st.sampled_from([16, 48, 64])
    batch = draw(sizes | st.tuples(sizes, st.floats(0.1, 0.9), sizes).map(lambda t: [(0.0, t[0]), (t[1], t[2])]))
    length = draw(lengths | st.tuples(lengths, st.floats(0.1, 0.9), lengths).map(lambda t: [(0.0, t[0]), (t[1], t[2])]))
    return Case(
        documents=documents,
        tokens_per_shard=draw(st.sampled_from([200, 1000, 5000])),
        tokens_per_block=draw(st.sampled_from([100, 1000])),
        config={
            "lanes": LANES,
            "window_shards": draw(st.integers(1, 4)),
            "sampling_exponent": draw(points(st.sampled_from([0.0, 0.3, 0.7, 1.0]))),
            "masking_rate": draw(points(st.sampled_from([0.05, 0.3, 1.0]))),
            "mask_share": draw(st.sampled_from([0.0, 0.8])),
            "language_starts": draw(st.dictionaries(st.sampled_from(joining), st.floats(0, 0.8))) if joining else {},
        },
        timeline=Timeline(draw(st.integers(2_000, 20_000)), batch, length),
        seed=draw(st.integers(0, 2**63)),
        run_parts=tuple(
            draw(
                st.lists(
                    st.builds(RunPart, st.floats(0, 1), st.sampled_from([1, 2, 4, 8]), st.sampled_from([0, 1, 3])),
                    min_size=1,
                    max_size=4,
                )
            )
        ),
    )


def run_steps(
    corpus: Path, case: Case, first: int, end: int, state: State | None, world_size: int, num_workers: int
) -> tuple[dict[int, list[str]], State]:
    """Return digests of every sequence of steps ``first`` to ``end``, and the ranks' merged state after them."""
    digests: dict[int, list[str]] = {}
    merged: State = {}
    config = StreamConfig(**case.config, num_workers=num_workers)
    for rank in range(world_size):
        stream = Stream(corpus, config, seed=case.seed, timeline=case.timeline, rank=rank, world_size=world_size)
        steps = stream.steps(first, state)
        for step in steps:
            digests.setdefault(step.step.index, []).extend(batch.digest() for batch in step.micro_batches(1))
            if step.step.index + 1 == end:
                merged |= json.loads(json.dumps(step.state))
                break
        steps.close()
    return digests, merged


def run_in_parts(corpus: Path, case: Case, alter: Callable[[State], Any] = lambda state: None) -> dict[int, list[str]]:
    """Return digests of the interrupted run; ``alter`` may change the state saved at each interruption."""
    num_steps = len(case.timeline)
    digests: dict[int, list[str]] = {}
    state, first = None, 0
    ends = [(max(1, round(part.end * num_steps)), part) for part in case.run_parts]
    for end, part in [*sorted(ends, key=lambda pair: pair[0]), (num_steps, case.run_parts[0])]:
        if end <= first:
            continue
        new_digests, state = run_steps(corpus, case, first, end, state, part.world_size, part.num_workers)
        alter(state)
        digests |= new_digests
        first = end
    return digests


def corpus_of(case: Case, folder: Path) -> Path:
    return write_corpus(
        folder,
        case.documents,
        tokens_per_shard=case.tokens_per_shard,
        tokens_per_block=case.tokens_per_block,
        median_length=30,
    )


def check(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_of(case, Path(folder))
        uninterrupted, _ = run_steps(corpus, case, 0, len(case.timeline), None, world_size=1, num_workers=0)
        assert [len(digests) for digests in uninterrupted.values()] == [step.num_sequences for step in case.timeline]
        assert run_in_parts(corpus, case) == uninterrupted


SETTINGS = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@settings(SETTINGS, max_examples=15)
@given(cases())
def test_batches_depend_on_seed_config_and_manifest_alone(case: Case) -> None:
    check(case)


@pytest.mark.slow
@settings(SETTINGS, max_examples=40, derandomize=False)
@given(cases())
def test_batches_of_many_runs_depend_on_seed_config_and_manifest_alone(case: Case) -> None:
    check(case)


def forget_window(state: State) -> None:
    for lane in state.keys() - {"fingerprint"}:
        state[lane]["window"] = 0


def forget_sequences_taken(state: State) -> None:
    for lane in state.keys() - {"fingerprint"}:
        state[lane]["packs"] = [[length, 0] for length, _ in state[lane]["packs"]]


def forget_earlier_packings(state: State) -> None:
    for lane in state.keys() - {"fingerprint"}:
        state[lane]["packs"] = state[lane]["packs"][-1:]


@pytest.mark.parametrize("forget", [forget_window, forget_sequences_taken, forget_earlier_packings])
def test_no_part_of_the_state_can_be_left_out(tmp_path: Path, forget: Callable[[State], None]) -> None:
    case = Case(
        documents={"da": 200, "fi": 100},
        tokens_per_shard=1000,
        tokens_per_block=1000,
        config={"lanes": LANES, "window_shards": 2},
        # The sequence length changes in the second or third window of a lane, and the run is interrupted soon after.
        timeline=Timeline(60_000, 8, [(0.0, 48), (0.6, 64)]),
        seed=1,
        run_parts=(RunPart(0.68, 2, 0),),
    )
    corpus = corpus_of(case, tmp_path)
    uninterrupted, _ = run_steps(corpus, case, 0, len(case.timeline), None, world_size=1, num_workers=0)
    assert run_in_parts(corpus, case) == uninterrupted
    altered = run_in_parts(corpus, case, forget)
    assert altered.keys() == uninterrupted.keys()
    assert altered != uninterrupted
