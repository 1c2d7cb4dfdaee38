"""Times of the steps of one provider."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PARTS = ("data", "forward", "backward", "optimizer")


class MeasuredError(Exception):
    """Raised to end a training that has made the steps to measure."""


class Stopwatch:
    """Counts steps, whose first ``warmup`` are left aside, and their parts.

    Args:
        warmup, steps: numbers of steps before and while the time counts.
        device: device of the training, for which the clock waits at the bounds of the time that counts. Within it the
            parts of a GPU's steps are not measured, as that would make it wait.
        started: time (`time.time`) at which the process was started.
    """

    def __init__(self, warmup: int, steps: int, device: torch.device, started: float) -> None:
        self._warmup, self._steps, self._device, self._started = warmup, steps, device, started
        self._done = 0
        self._losses: list[Tensor] = []
        self._first_step = 0.0
        self._tokens = 0
        self._measured: dict[str, float] = defaultdict(float)
        self.parts: dict[str, float] | None = None
        """Seconds of a step by part, from a provider that measures them itself."""
        self.communication: dict[str, dict[str, float]] | None = None
        """What the ranks have sent each other in a step, by operation: calls, bytes and seconds, which are contained in
        the parts; from a provider that measures it."""

    @contextmanager
    def measures(self, part: str) -> Iterator[None]:
        """Count the block as ``part`` of a step, one of `PARTS`."""
        begun = time.perf_counter()
        yield
        if self._counts:
            self._measured[part] += time.perf_counter() - begun

    def end_step(self, tokens: int, loss: Tensor | None = None) -> None:
        """Count a step of this rank.

        Args:
            tokens: its tokens, without padding.
            loss: its loss, if the provider has it at hand.
        """
        if loss is not None:
            self._losses.append(loss.detach())
        if self._counts:
            self._tokens += tokens
        self._done += 1
        if self._done == 1:
            self._wait()
            self._first_step = time.time() - self._started
        if self._done == self._warmup:
            self._wait()
            self._begun, self._cpu_begun = time.perf_counter(), time.process_time()
        if self._done == self._warmup + self._steps:
            self._wait()
            self._seconds = time.perf_counter() - self._begun
            self._cpu_seconds = time.process_time() - self._cpu_begun

    @property
    def _counts(self) -> bool:
        return self._warmup <= self._done < self._warmup + self._steps

    def result(self) -> dict[str, Any]:
        """Return the figures of this rank."""
        result: dict[str, Any] = {
            "tokens": self._tokens,
            "seconds": self._seconds,
            "cpu_seconds": self._cpu_seconds,
            "first_step_seconds": self._first_step,
        }
        parts = self.parts
        if parts is None and self._device.type == "cpu":
            parts = {part: seconds / self._steps for part, seconds in self._measured.items()}
        if parts:
            result["parts"] = parts
        if self.communication is not None:
            result["communication"] = self.communication
        if self._losses:
            result["losses"] = torch.stack(self._losses).tolist()
        return result

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
