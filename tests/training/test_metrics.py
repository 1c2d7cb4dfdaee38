"""Throughput between two lines of metrics."""

import pytest

from unibert.training.metrics import Throughput


def test_the_time_of_measurements_does_not_count(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    throughput = Throughput(100)
    clock[0] += 2
    with throughput.paused():
        clock[0] += 30
    clock[0] += 3
    # The steps before the measurement count, and so do those after it.
    assert throughput.since_last(600) == pytest.approx(500 / 5)
    clock[0] += 4
    assert throughput.since_last(1000) == pytest.approx(400 / 4)
