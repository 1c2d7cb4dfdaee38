"""Goals of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A goal for one case, and whether a measured figure meets it."""

    name: str
    case: str
    figure: str
    met: bool


def format_goals(goals: Sequence[Goal]) -> str:
    """One line for each goal."""
    if not goals:
        return "no goal can be decided from these rows"
    return "\n".join(
        f"{'met   ' if goal.met else 'MISSED'}  {goal.name}: {goal.figure}  [{goal.case}]" for goal in goals
    )
