"""The stream of a branch goes on where its parent's stood, however the branch mixes, packs and masks."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stream.test_coverage import corpus_tokens, pieces
from unibert.schedules import Timeline
from unibert.stream import Stream, StreamConfig
from unibert.stream.past import continued, past_from_json

SHORT = Timeline(24_000, 8, 64)
POINTS: Any = [(0.0, 0.9), (1.0, 0.1)]


def config(**changes: Any) -> StreamConfig:
    return StreamConfig(**{"lanes": 2, "window_shards": 1, "max_epochs": 1.0} | changes)


class Run:
    """A run up to a step, of which another may be the continuation."""

    def __init__(self, corpus: Path, stream: StreamConfig, timeline: Timeline, end: int, parent: Run | None = None):
        self.config, self.timeline = stream, timeline
        self.past, state, first = None, None, 0
        if parent is not None:
            past = continued(parent.state, parent.config, parent.languages, parent.timeline.total_tokens, parent.past)
            self.past, first = past_from_json(json.loads(json.dumps(asdict(past)))), parent.end
        own = Stream(corpus, stream, seed=3, timeline=timeline, past=self.past)
        if parent is not None:
            state = parent.state | {"fingerprint": own.fingerprint}
        self.languages, self.end = own.languages, end
        self.digests: list[list[str]] = []
        self.read = Counter() if parent is None else Counter(parent.read)
        for step in own.steps(first, state):
            (batch,) = step.micro_batches(step.step.num_sequences)
            self.digests.append([one.digest() for one in step.micro_batches(1)])
            for origin, tokens in pieces(batch):
                self.read[origin] += len(tokens) - 2
            self.state = step.state
            if step.step.index + 1 == end:
                break


@settings(max_examples=6, deadline=None)
@given(
    end=st.integers(1, len(SHORT)),
    exponent=st.sampled_from([0.7, POINTS]),
    later_exponent=st.sampled_from([0.2, POINTS]),
    length=st.sampled_from([48, 64, 128]),
    start=st.sampled_from([0.0, 0.6]),
)
def test_branches_read_no_document_twice(corpus, end, exponent, later_exponent, length, start):
    lengths = {origin: len(tokens) for origin, tokens in corpus_tokens(corpus).items()}
    parent = Run(corpus, config(sampling_exponent=exponent), SHORT, end)
    other = config(sampling_exponent=later_exponent, masking_rate=0.1, language_starts={"is": start})
    timeline = Timeline(36_000, 4, length, past=SHORT.until(end))
    branch = Run(corpus, other, timeline, (end + len(timeline)) // 2 + 1, parent)
    timeline = Timeline(48_000, 8, 64, past=timeline.until(branch.end))
    second = Run(corpus, other, timeline, len(timeline), branch)
    assert sum(second.read.values()) > 0.8 * 48_000
    assert all(count <= lengths[origin] for origin, count in second.read.items())


def test_a_longer_run_is_a_branch_that_changes_nothing(corpus):
    whole = Run(corpus, config(max_epochs=None), Timeline(48_000, 8, 64), 94)
    parent = Run(corpus, config(max_epochs=None), SHORT, 20)
    branch = Run(corpus, config(max_epochs=None), Timeline(48_000, 8, 64, past=SHORT.until(20)), 94, parent)
    assert parent.digests + branch.digests == whole.digests


def test_skipped_data_is_never_read_and_the_rest_is(corpus):
    """Also after an interruption before and after the step that skips."""

    def contents(skips: Any, first: int = 0, state: Any = None) -> tuple[list[Any], list[Any]]:
        stream = Stream(corpus, config(), seed=3, timeline=SHORT, skips=skips)
        read, states = [], []
        for step in stream.steps(first, state):
            read.append([tokens for _, tokens in pieces(step.micro_batches(8)[0])])
            states.append(step.state)
        return read, states

    plain, _ = contents({})
    skips = {5: [(5, 9), (5, 6)], 20: [(20, 22)]}
    read, states = contents(skips)
    assert read[:5] == plain[:5]
    assert read[5:20] == plain[10:25]
    assert read[20:40] == plain[27:47]
    for stop in (5, 6, 20):
        assert contents(skips, stop, states[stop - 1])[0] == read[stop:]
    assert contents(skips, 7)[0] == read[7:]
