"""Steps whose loss or gradient is not finite. They change no weight and are counted; only many in a row end the run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from unibert.errors import AgreedError
from unibert.stream import Batch
from unibert.training.ranks.collectives import gather_objects

Cause = Literal["loss", "gradient", "loss_scale"]
"""What was not finite: a loss, or a gradient of finite losses. In fp16 the latter only means that the loss scale was
too high, which DeepSpeed then lowers."""

_NAMED_DOCUMENTS = 5  # of each rank


class BadSteps:
    """Counts the steps that were left out, equally on all ranks.

    Args:
        limit: number of bad steps in a row that end the run. Steps that a loss scale spoilt do not count.
        scales_loss: whether DeepSpeed scales the loss, as in fp16.
    """

    def __init__(self, limit: int, *, scales_loss: bool) -> None:
        self._limit, self._scales_loss = limit, scales_loss
        self.counts: Counter[str] = Counter()
        """Number of steps that were left out, by cause."""
        self.in_a_row = 0
        """Number of bad steps since the last good one."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"counts": dict(self.counts), "in_a_row": self.in_a_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self.counts, self.in_a_row = Counter(state["counts"]), state["in_a_row"]

    def count_good(self) -> None:
        """Count a step that has changed the weights."""
        self.in_a_row = 0

    def count_bad(self, step: int, losses: list[float], batches: list[Batch]) -> dict[str, Any]:
        """Count a step that has changed nothing. All ranks must call this.

        Args:
            step: number of the step, from 1.
            losses: loss of each micro-batch of this rank.
            batches: these micro-batches.

        Returns:
            The entries of its line in metrics.jsonl: ``left_out``, its cause, and ``origins``, the first documents of
            each rank that has a loss that is not finite, or of all ranks if none has.

        Raises:
            AgreedError: at the limit of bad steps in a row.
        """
        bad = [batch for batch, loss in zip(batches, losses, strict=True) if not math.isfinite(loss)]
        parts = gather_objects((bool(bad), _origins(bad or batches)))
        spoilt = any(is_bad for is_bad, _ in parts)
        cause: Cause = "loss" if spoilt else "loss_scale" if self._scales_loss else "gradient"
        origins = {str(rank): names for rank, (is_bad, names) in enumerate(parts) if is_bad or not spoilt}
        self.counts[cause] += 1
        if cause != "loss_scale":
            self.in_a_row += 1
        if self.in_a_row >= self._limit:
            raise AgreedError(
                f"step {step}: {sentence(cause, origins)}; {_succession(self.in_a_row)} (training.max_bad_steps), so "
                "the run ends; the newest checkpoint is kept; check these documents, or continue with a lower "
                "optimizer.learning_rate or adversary.max_lambda, which --allow_change permits"
            )
        return {"left_out": cause, "origins": origins}


def sentence(cause: Cause, origins: Mapping[str, list[str]]) -> str:
    """Say what was not finite, and where."""
    if cause == "loss_scale":
        return "the gradient overflowed fp16 and DeepSpeed lowers the loss scale"
    where = "; ".join(f"rank {rank}: {', '.join(names)}" for rank, names in origins.items())
    return f"the {cause} is not finite in the batch of {where}"


def _succession(number: int) -> str:
    return "no bad step is allowed" if number == 1 else f"it is bad step {number} in a row"


def _origins(batches: list[Batch]) -> list[str]:
    return sorted({name for batch in batches for names in batch.origins for name in names})[:_NAMED_DOCUMENTS]
