import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unibert.schedules import Timeline, dann_ramp, learning_rate_factor, value_at


def test_points_are_joined_by_lines_flat_outside_and_jump_where_they_coincide():
    points = [(0.2, 1.0), (0.6, 3.0), (0.6, 10.0)]
    assert [value_at(points, p) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == [1.0, 1.0, 2.0, 10.0, 10.0]
    assert value_at(0.7, 0.3) == 0.7


def test_wsd_rises_stays_and_falls():
    def rate(progress: float) -> float:
        return learning_rate_factor(progress, warmup=0.1, decay=0.2)

    assert rate(0.05) == pytest.approx(0.5)
    assert rate(0.1) == rate(0.79) == 1.0
    assert rate(0.85) == pytest.approx(1 - math.sqrt(0.25))
    assert rate(1.0) == 0.0


def test_cosine_over_the_whole_run():
    assert learning_rate_factor(0.5, warmup=0, decay=1, shape="cosine") == pytest.approx(0.5)


def test_dann_ramp_starts_at_zero_and_nears_one():
    assert dann_ramp(0) == 0
    assert dann_ramp(1) == pytest.approx(2 / (1 + math.exp(-10)) - 1)


def test_timeline_counts_every_sequence_and_token_once():
    timeline = Timeline(10_000, [(0, 4), (0.5, 8)], [(0, 16), (0.25, 32)])
    sequences = tokens = 0
    for index in range(len(timeline)):
        step = timeline[index]
        assert (step.first_sequence, step.tokens_before) == (sequences, tokens)
        assert step.progress == tokens / timeline.total_tokens
        sequences += step.num_sequences
        tokens += step.num_tokens
    assert (sequences, tokens) == (timeline.num_sequences, timeline.total_tokens)
    assert 10_000 <= tokens < 10_000 + 8 * 32
    assert [(p.num_sequences, p.sequence_length) for p in timeline.phases()] == [(4, 16), (4, 32), (8, 32)]


@given(
    st.integers(1, 200), st.sampled_from([[(0, 4)], [(0, 4), (0.5, 8)]]), st.sampled_from([16, [(0, 16), (0.25, 32)]])
)
def test_a_timeline_goes_on_from_its_own_past(step, sizes, lengths):
    whole = Timeline(10_000, sizes, lengths)
    step = min(step, len(whole) - 1)
    branch = Timeline(10_000, sizes, lengths, past=whole.until(step))
    assert list(branch) == list(whole)
    longer = Timeline(20_000, 4, 64, past=whole.until(step))
    assert [replace(one, progress=0.0) for one in list(longer)[:step]] == [
        replace(one, progress=0.0) for one in list(whole)[:step]
    ]
    assert [(one.num_sequences, one.sequence_length) for one in list(longer)[step:]] == [(4, 64)] * (len(longer) - step)
    assert longer[step].tokens_before == whole[step].tokens_before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 16), "tokens"),
        ((100, [(0.5, 4)], 16), "global_batch_size: the first point must be at progress 0"),
        ((100, 4, [(0, 16), (0.5, 0)]), "sequence_length: values must be positive"),
        ((100, [(0, 4), (0.9, 8), (0.3, 2)], 16), "global_batch_size: points must be in order"),
    ],
)
def test_malformed_timelines_name_the_key(arguments, message):
    with pytest.raises(ValueError, match=message):
        Timeline(*arguments)
