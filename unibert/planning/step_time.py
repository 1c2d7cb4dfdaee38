"""The time of a step on many ranks: what each computes, and what they send each other under each ZeRO stage.

What is sent follows DeepSpeed 0.19, whose log of messages `unibert bench scaling` compares with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from unibert.training.engine import zero_stage

Operation = Literal["all_reduce", "all_gather", "reduce_scatter"]

PASSES: Mapping[Operation, int] = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}
"""How often a ring carries the tensor, less its W-th part: Rajbhandari et al., *ZeRO*, arXiv 1910.02054, section 7."""
_BACKWARD_SHARE = 2 / 3
"""Share of a step's computation that is its backward pass, which has two products for each one of the forward pass."""
_DEFAULT_BUCKET = 500_000_000
"""DeepSpeed's default for ``reduce_bucket_size``, and the size of its messages under stage 0."""
_DEFAULT_PERSISTENCE = 100_000
"""DeepSpeed's default for ``stage3_param_persistence_threshold``."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """What a rank can send to the next one, while all do so around a ring."""

    bytes_per_second: float
    """Each way."""
    latency: float
    """Seconds that any message takes."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The messages of a step that have one purpose."""

    purpose: Literal["gradients", "weights"]
    operation: Operation
    messages: float
    num_bytes: float
    """Bytes of the whole tensors, those of all messages together."""

    def seconds(self, world_size: int, link: Link) -> float:
        """Time around a ring of ``world_size`` ranks."""
        if world_size == 1:
            return 0.0
        carried = PASSES[self.operation] * (1 - 1 / world_size) * self.num_bytes
        return carried / link.bytes_per_second + self.messages * link.latency


def num_modules_with_parameters(model: nn.Module) -> int:
    """Return the number of modules that have parameters of their own."""
    return sum(any(True for _ in module.parameters(recurse=False)) for module in model.modules())


def traffic_of_step(
    ds_config: Mapping[str, Any], *, sizes: Sequence[int], modules: int, itemsize: int, micro_batches: int
) -> list[Traffic]:
    """Return what the ranks send each other in a step.

    Stages 1 and 2 reduce a bucket to all ranks, as DeepSpeed does by default, though each needs its share alone. Stage
    2 reduces after every micro-batch, and so does stage 3, which also gathers the weights again for each, but keeps
    those of a compact model from the forward to the backward pass, and small parameters from update to update.

    Args:
        ds_config: result of `unibert.training.engine.read_ds_config`.
        sizes: elements of every trained parameter.
        modules: `num_modules_with_parameters` of the model, whose weights stage 3 gathers one after the other.
        itemsize: bytes of a weight.
        micro_batches: those that a rank makes in a step.
    """
    stage, zero = zero_stage(dict(ds_config)), ds_config.get("zero_optimization", {})
    parameters = sum(sizes)
    size = float(itemsize * parameters)
    bucket = _DEFAULT_BUCKET if stage == 0 else zero.get("reduce_bucket_size", _DEFAULT_BUCKET)
    reductions = micro_batches if stage >= 2 else 1
    gradients = Traffic(
        purpose="gradients",
        operation="reduce_scatter" if stage == 3 else "all_reduce",
        messages=reductions * math.ceil(parameters / bucket),
        num_bytes=reductions * size,
    )
    if stage == 0:
        return [gradients]
    messages, weights = math.ceil(parameters / _DEFAULT_BUCKET), size
    if stage == 3:
        kept = zero.get("stage3_param_persistence_threshold", _DEFAULT_PERSISTENCE)
        released = itemsize * sum(elements for elements in sizes if elements >= kept)
        messages, weights = modules * micro_batches, size + (micro_batches - 1) * released
    return [gradients, Traffic(purpose="weights", operation="all_gather", messages=messages, num_bytes=weights)]


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step."""

    computing: float
    gradients: float
    weights: float
    hidden: float
    """What could at most take place while the rank computes. How much does is not known."""

    @property
    def exchange(self) -> float:
        """Gradients and weights."""
        return self.gradients + self.weights

    @property
    def longest(self) -> float:
        """With nothing hidden."""
        return self.computing + self.exchange

    @property
    def shortest(self) -> float:
        """With all hidden that can be."""
        return self.longest - self.hidden


def step_time(
    ds_config: Mapping[str, Any],
    traffic: Sequence[Traffic],
    *,
    computing: float,
    micro_batches: int,
    seconds_of: Callable[[Traffic], float],
) -> StepTime:
    """Add up a step.

    With ``overlap_comm``, a bucket's reduction can hide behind the backward pass that goes on, all but that of the
    last one; under stage 3 also the gather of weights behind the forward pass, all but that of the first module.

    Args:
        ds_config: as for `traffic_of_step`, which gives ``traffic``.
        traffic: what is sent.
        computing: seconds of forward and backward passes and update.
        micro_batches: those that a rank makes in a step.
        seconds_of: time of each of ``traffic``.
    """
    stage, zero = zero_stage(dict(ds_config)), ds_config.get("zero_optimization", {})
    seconds = dict.fromkeys(("gradients", "weights"), 0.0)
    for part in traffic:
        seconds[part.purpose] += seconds_of(part)
    hidden = 0.0
    # Stage 0 reduces when the backward pass has ended. DeepSpeed overlaps under stage 3 unless told not to.
    if stage and zero.get("overlap_comm", stage == 3):
        reducing = micro_batches if stage >= 2 else 1
        for part in traffic:
            behind = reducing / micro_batches * _BACKWARD_SHARE * computing
            last = reducing / part.messages
            if part.purpose == "weights":
                if stage < 3:
                    continue
                behind, last = (1 - _BACKWARD_SHARE) * computing, micro_batches / part.messages
            hidden += min(behind, (1 - last) * seconds_of(part))
    return StepTime(computing=computing, hidden=hidden, **seconds)


def mean_step_time(times: Sequence[StepTime], steps: Sequence[float]) -> StepTime:
    """Return the mean of ``times``, each of which takes so many ``steps``."""
    parts = ("computing", "gradients", "weights", "hidden")
    sums = {
        part: sum(getattr(time, part) * number for time, number in zip(times, steps, strict=True)) for part in parts
    }
    return StepTime(**{part: total / sum(steps) for part, total in sums.items()})
