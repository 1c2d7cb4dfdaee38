"""Values that change over a run: schedules over progress, learning-rate shapes, and the timeline of steps.

Progress is the share of a run's tokens already consumed, from 0 (before the first step) to 1.
Everything here is a pure function of the configuration, so that every step can be recomputed at any time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Points = list[tuple[float, float]]
Schedule = float | Points
"""A number, or points ``[[progress, value], ...]`` joined by straight lines and flat outside them.

Two points at the same progress make a jump; the later one holds from there on.
"""

IntegerPoints = list[tuple[float, int]]
IntegerSchedule = int | IntegerPoints
"""An integer, or points ``[[progress, value], ...]``; each value holds from its progress on."""

DecayShape = Literal["1-sqrt", "linear", "cosine"]


def check_points(points: Points | IntegerPoints, name: str) -> None:
    """Check that points are not empty, in order and inside [0, 1].

    Raises:
        ValueError: if they are not, with ``name``, the configuration key.
    """
    progresses = [progress for progress, _ in points]
    if not progresses:
        raise ValueError(f"{name}: a schedule needs at least one [progress, value] point")
    if any(not 0 <= progress <= 1 for progress in progresses):
        raise ValueError(f"{name}: progress must lie between 0 and 1, got {progresses}")
    if progresses != sorted(progresses):
        raise ValueError(f"{name}: points must be in order of progress, got {progresses}")


def value_at(schedule: Schedule, progress: float) -> float:
    """Return the schedule's value at ``progress`` (0 to 1)."""
    if not isinstance(schedule, list):
        return float(schedule)
    after = bisect_right(schedule, progress, key=lambda point: point[0])
    if after == 0:
        return float(schedule[0][1])
    if after == len(schedule):
        return float(schedule[-1][1])
    (left, low), (right, high) = schedule[after - 1], schedule[after]
    return low + (high - low) * (progress - left) / (right - left)


def max_value(schedule: Schedule) -> float:
    """Return the schedule's largest value."""
    return max(value for _, value in schedule) if isinstance(schedule, list) else schedule


def ever_positive(schedule: Schedule) -> bool:
    """Return whether the schedule is above 0 anywhere."""
    return max_value(schedule) > 0


def learning_rate_factor(progress: float, *, warmup: float, decay: float, shape: DecayShape = "1-sqrt") -> float:
    """Return the factor on the peak learning rate at ``progress``: warm-up, stable, decay (WSD).

    Linear from 0 over the first ``warmup`` share of the run, 1 until the last ``decay`` share, then down to 0 by
    ``shape``. ``decay = 1 - warmup`` with ``cosine`` is the classical cosine schedule.
    The 1-sqrt decay is that of Hägele et al. 2024 (arXiv 2405.18392).
    """
    if progress < warmup:
        return progress / warmup
    if decay == 0 or progress < 1 - decay:
        return 1.0
    through = 1 - (1 - min(progress, 1.0)) / decay
    return {
        "1-sqrt": 1 - math.sqrt(through),
        "linear": 1 - through,
        "cosine": 0.5 * (1 + math.cos(math.pi * through)),
    }[shape]


def passes_multiple(interval: int | None, before: int, after: int) -> bool:
    """Whether a multiple of ``interval`` lies above ``before`` and not above ``after``; never if it is None."""
    return interval is not None and after // interval > before // interval


def dann_ramp(progress: float) -> float:
    """Return 2 / (1 + exp(-10 p)) - 1, the gradient-reversal ramp of DANN (Ganin et al. 2016, arXiv 1505.07818)."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


@dataclass(frozen=True)
class Step:
    """The sequences and tokens that one optimizer step consumes.

    ``first_sequence`` is the run-wide index of its first sequence, ``tokens_before`` the tokens (padding
    included) consumed before it, ``progress`` their share of the whole run.
    """

    index: int
    num_sequences: int
    sequence_length: int
    first_sequence: int
    tokens_before: int
    progress: float

    @property
    def num_tokens(self) -> int:
        return self.num_sequences * self.sequence_length


PastSteps = Sequence[tuple[int, int, int]]
"""Steps that a run takes over from another: number of steps, sequences per step and sequence length of each phase."""


@dataclass(frozen=True)
class _Phase:
    first_step: int
    first_sequence: int
    first_token: int
    num_sequences: int
    sequence_length: int


class Timeline:
    """Global batch size and sequence length of every step of a run of at least ``tokens`` tokens.

    The last step may exceed ``tokens`` by less than one step; ``total_tokens`` is the number that is consumed.
    Steps taken over from another run come first and count among the tokens; the schedules decide the steps after them.

    Raises:
        ValueError: if a schedule is malformed or a value is not positive.
    """

    def __init__(
        self,
        tokens: int,
        global_batch_size: IntegerSchedule,
        sequence_length: IntegerSchedule,
        *,
        past: PastSteps = (),
    ) -> None:
        if tokens <= 0:
            raise ValueError(f"tokens: a run needs at least one token, got {tokens}")
        sizes = _as_points(global_batch_size, "global_batch_size")
        lengths = _as_points(sequence_length, "sequence_length")
        self._phases: list[_Phase] = []
        step = sequence = token = 0
        for num_steps, size, length in past:
            self._phases.append(_Phase(step, sequence, token, size, length))
            step, sequence, token = step + num_steps, sequence + num_steps * size, token + num_steps * size * length
        bounds = sorted({progress for progress, _ in sizes + lengths})
        for bound, next_bound in zip(bounds, [*bounds[1:], 1.0], strict=True):
            size, length = _held_value(sizes, bound), _held_value(lengths, bound)
            end = math.ceil(next_bound * tokens)
            num_steps = max(0, math.ceil((end - token) / (size * length)))
            if num_steps:
                self._phases.append(_Phase(step, sequence, token, size, length))
            step, sequence, token = step + num_steps, sequence + num_steps * size, token + num_steps * size * length
        self.num_steps = step
        self.total_tokens = token
        self.num_sequences = sequence

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, index: int) -> Step:
        """Return step ``index`` (0-based). Raises IndexError outside the run."""
        if not 0 <= index < self.num_steps:
            raise IndexError(f"step {index} of a run of {self.num_steps} steps")
        phase = self._phases[bisect_right(self._phases, index, key=lambda phase: phase.first_step) - 1]
        steps_before = index - phase.first_step
        tokens_before = phase.first_token + steps_before * phase.num_sequences * phase.sequence_length
        return Step(
            index=index,
            num_sequences=phase.num_sequences,
            sequence_length=phase.sequence_length,
            first_sequence=phase.first_sequence + steps_before * phase.num_sequences,
            tokens_before=tokens_before,
            progress=tokens_before / self.total_tokens,
        )

    def phases(self, first_step: int = 0) -> list[Step]:
        """Return the first step of every phase of constant batch size and sequence length, from a step on."""
        begins = [phase.first_step for phase in self._phases]
        ends = [*begins[1:], self.num_steps]
        return [self[max(begin, first_step)] for begin, end in zip(begins, ends, strict=True) if end > first_step]

    def until(self, step: int) -> PastSteps:
        """Return the first ``step`` steps, for a timeline that goes on from there."""
        phases = [phase for phase in self._phases if phase.first_step < step]
        ends = [*(phase.first_step for phase in phases[1:]), step]
        return [
            (end - phase.first_step, phase.num_sequences, phase.sequence_length)
            for phase, end in zip(phases, ends, strict=True)
        ]

    @property
    def sequence_lengths(self) -> set[int]:
        """Sequence lengths of all phases."""
        return {phase.sequence_length for phase in self.phases()}


def _as_points(schedule: IntegerSchedule, name: str) -> IntegerPoints:
    points = schedule if isinstance(schedule, list) else [(0.0, schedule)]
    check_points(points, name)
    if points[0][0] != 0:
        raise ValueError(f"{name}: the first point must be at progress 0, got {points[0][0]}")
    if any(value <= 0 for _, value in points):
        raise ValueError(f"{name}: values must be positive, got {[value for _, value in points]}")
    return points


def _held_value(points: IntegerPoints, progress: float) -> int:
    return points[bisect_right(points, progress, key=lambda point: point[0]) - 1][1]
