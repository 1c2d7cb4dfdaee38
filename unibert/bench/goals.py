"""A goal that was set for a benchmark, and how it came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One goal on one case."""

    name: str
    case: str
    figure: str
    met: bool


def format_verdict(goals: Sequence[Goal]) -> str:
    """One line a goal."""
    if not goals:
        return "no goal can be decided from these rows"
    return "\n".join(
        f"{'met   ' if goal.met else 'MISSED'}  {goal.name}: {goal.figure}  [{goal.case}]" for goal in goals
    )
