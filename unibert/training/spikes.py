"""Loss spikes: steps whose loss lies far above that of the steps before them, several in a row."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from unibert.training.config import SpikeConfig

_DEVIATIONS_PER_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation (MAD)."""


class Spikes:
    """Watches the losses of a run, equally on all ranks.

    A step is high if its loss is more than ``threshold`` standard deviations above the median of the last ``window``
    steps that were not. Median and MAD estimate both, because neither a spike nor a few odd batches move them.
    ``steps`` high steps in a row are a spike; a single one may be an odd batch.
    """

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self.high: list[float] = []
        """Losses of the high steps since the last one that was not."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"losses": list(self._losses), "high": self.high}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self._losses.extend(state["losses"])
        self.high = list(state["high"])

    @property
    def bound(self) -> float:
        """The loss above which a step is high; infinite until the window is full."""
        if len(self._losses) < self._config.window:
            return math.inf
        middle = median(self._losses)
        deviation = _DEVIATIONS_PER_MAD * median(abs(loss - middle) for loss in self._losses)
        return middle + self._config.threshold * deviation

    def forget(self) -> None:
        """Forget all losses, for a run that goes on at another level of the loss."""
        self._losses.clear()
        self.high = []

    def is_spike(self, loss: float) -> bool:
        """Add the loss of the next step; return whether it completes a spike."""
        if loss > self.bound:
            self.high.append(loss)
        else:
            self.high = []
            self._losses.append(loss)
        return len(self.high) >= self._config.steps
