"""A moving average of the weights (EMA) beside AdamW's moments: sharded, saved and restored as they are."""

from __future__ import annotations

from typing import Any

import torch

KEY = "ema"
"""Name of the average in the optimizer's state of a parameter."""


class WeightAverage:
    """Averages the fp32 weights that AdamW updates; under ZeRO 1 to 3, those of this rank's shard.

    After each update by AdamW, ``average = decay · average + (1 - decay) · weights`` with ``decay`` 0.5 to the power of
    the step's share of the half-life, so that it does not depend on the batch size. The average begins with the weights
    after the first step. A step that changes no weight does not change it.

    Args:
        optimizer: AdamW, after DeepSpeed has built its engine around it and `WeightUpdate` has been set before it.
        half_life: tokens after which a step's weights count half; None for no average.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, half_life: int | None) -> None:
        self._optimizer, self._half_life = optimizer, half_life
        self._decay = 0.0
        if half_life is not None:
            optimizer.register_step_post_hook(self._update)

    def begin_step(self, num_tokens: int) -> None:
        """Set the decay for a step of this many tokens over all ranks."""
        if self._half_life is not None:
            self._decay = 0.5 ** (num_tokens / self._half_life)

    def forget_unless_wanted(self) -> None:
        """Drop the average of a checkpoint, if this start wants none."""
        if self._half_life is None:
            for state in self._optimizer.state.values():
                state.pop(KEY, None)

    def _update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # DeepSpeed calls the optimizer once for each group, or part of one, with the others hidden.
        updated = [
            parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None
        ]
        if not updated:
            return
        # Whether the step is left out stands on the device, for which the host does not wait.
        share = (1 - self._decay) * (1 - optimizer.found_inf)  # type: ignore[attr-defined]
        for parameter in updated:
            state = optimizer.state[parameter]
            if KEY in state:
                state[KEY].lerp_(parameter.detach(), share)
            else:
                state[KEY] = parameter.detach().clone()
