"""Windows and steps are prepared while the model works, and give the same batches."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from unibert.corpus.manifest import Shard
from unibert.errors import UserError
from unibert.schedules import Timeline
from unibert.stream import Stream, StreamConfig
from unibert.stream.ahead import prepare_ahead
from unibert.stream.source import ShardSource

TIMELINE = Timeline(40_000, 2, 128)


@pytest.fixture
def stream(corpus: Path) -> Stream:
    return Stream(corpus, StreamConfig(lanes=1, window_shards=2), seed=0, timeline=TIMELINE)


def digests(steps: Iterator[Any]) -> list[str]:
    return [batch.digest() for step in steps for batch in step.micro_batches(2)]


def test_steps_go_on_while_the_next_window_is_opened(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, may_open, is_opening = list(stream.steps()), threading.Event(), threading.Event()
    open_shard = ShardSource.open
    opened: list[str] = []

    def open_slowly(source: ShardSource, shard: Shard) -> BinaryIO:
        opened.append(shard.path)
        if len(opened) > 2:
            is_opening.set()
            assert may_open.wait(30)
        return open_shard(source, shard)

    monkeypatch.setattr(ShardSource, "open", open_slowly)
    steps = stream.steps()
    first_window = [step for step in expected if step.state["0"]["window"] == 0]
    assert len(first_window) > 4
    delivered = [next(steps) for _ in first_window[:-1]]
    assert is_opening.wait(30)
    may_open.set()
    assert digests(iter([*delivered, *steps])) == digests(iter(expected))


def test_what_fails_in_the_background_is_tried_again(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = digests(stream.steps())
    open_shard = ShardSource.open
    opened: list[str] = []

    def fail_at_the_third(source: ShardSource, shard: Shard) -> BinaryIO:
        opened.append(shard.path)
        if len(opened) == 3:
            raise UserError("the server does not respond")
        return open_shard(source, shard)

    monkeypatch.setattr(ShardSource, "open", fail_at_the_third)
    assert digests(stream.steps()) == expected
    assert opened.count(opened[2]) > 1


def test_the_next_step_is_prepared_meanwhile(stream: Stream) -> None:
    asked_for: list[int] = []
    third_is_ready = threading.Event()

    def steps() -> Iterator[Any]:
        for step in stream.steps():
            asked_for.append(step.step.index)
            if step.step.index == 2:
                third_is_ready.set()
            if step.step.index == 3:
                raise UserError("the fourth step cannot be read")
            yield step

    prepared = prepare_ahead(steps(), lambda step: 2)  # type: ignore[arg-type]
    first, batches = next(prepared)
    assert [batch.digest() for batch in batches] == digests(iter([first]))
    assert next(prepared)[0].step.index == 1
    assert third_is_ready.wait(30)
    assert next(prepared)[0].step.index == 2
    with pytest.raises(UserError, match="the fourth step cannot be read"):
        next(prepared)
    assert asked_for == [0, 1, 2, 3]


def test_a_closed_stream_leaves_no_thread_at_work(stream: Stream) -> None:
    """A process forked meanwhile would inherit the locks that it holds."""
    before = set(threading.enumerate())
    steps = stream.steps()
    while next(steps).step.index < 20:
        pass
    assert set(threading.enumerate()) - before
    steps.close()
    assert not set(threading.enumerate()) - before
