import math

import pytest

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
