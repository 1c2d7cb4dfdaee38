"""Data that a run skips: the lanes pass over the sequences of some steps before they give those of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from unibert.schedules import Timeline
from unibert.stream.lane import Lane

Skips = Mapping[int, Sequence[tuple[int, int]]]
"""By index of a step, the steps (first, end) of whose size is what the lanes pass over before it."""


def pass_over(lanes: Iterable[Lane], skips: Skips, step: int, timeline: Timeline, num_lanes: int) -> None:
    """Advance the lanes by what is skipped before ``step``."""
    for first, end in skips.get(step, ()):
        for skipped in map(timeline.__getitem__, range(first, end)):
            for lane in lanes:
                lane.skip(skipped.num_sequences // num_lanes, skipped.sequence_length)
