"""Comparing the metrics of two runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unibert.training.metrics_file import TIMING_KEYS, read_metrics


def lines_without_timing(run_dir: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in TIMING_KEYS}
        for line in read_metrics(run_dir / "metrics.jsonl").records
    ]


def largest_relative_difference(first: Path, second: Path, leave_out: Sequence[str] = ()) -> float:
    """Over all numbers of all lines but those of some keys; both runs must have written the same lines."""
    pairs = list(zip(lines_without_timing(first), lines_without_timing(second), strict=True))
    assert pairs
    return max(_difference(a, b, leave_out) for a, b in pairs)


def _difference(first: Any, second: Any, leave_out: Sequence[str]) -> float:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        keys = first.keys() - set(leave_out)
        return max((_difference(first[key], second[key], leave_out) for key in keys), default=0.0)
    assert type(first) is type(second)
    return abs(first - second) / max(abs(first), abs(second), 1e-30) if first != second else 0.0
