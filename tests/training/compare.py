"""Comparing the metrics of two runs."""

from pathlib import Path
from typing import Any

from unibert.training.metrics_file import TIMING_KEYS, read_metrics


def lines_without_timing(run_dir: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in TIMING_KEYS}
        for line in read_metrics(run_dir / "metrics.jsonl").records
    ]


def largest_relative_difference(first: Path, second: Path) -> float:
    """Over all numbers of all lines; both runs must have written the same lines."""
    pairs = list(zip(lines_without_timing(first), lines_without_timing(second), strict=True))
    assert pairs
    return max(_difference(a, b) for a, b in pairs)


def _difference(first: Any, second: Any) -> float:
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        return max((_difference(first[key], second[key]) for key in first), default=0.0)
    assert type(first) is type(second)
    return abs(first - second) / max(abs(first), abs(second), 1e-30) if first != second else 0.0
