"""The time of a step on several ranks, from steps of single ranks and from the link between ranks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unibert.bench.scaling.cases import Case
from unibert.bench.scaling.link import FLATTEN, LARGE
from unibert.planning.step_time import PASSES, Link, Operation, Traffic, traffic_of_step
from unibert.training.engine import training_dtype, zero_stage

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Seconds of a step by what they are for."""

    passes: float
    """Forward and backward passes of the micro-batches."""
    copies: float
    """What DeepSpeed does with gradients and weights beside the update: copies into buckets and shards, norms."""
    update: float
    """AdamW, on a rank's share of the weights."""
    exchange: float
    """Gradients and weights between the ranks."""

    @property
    def seconds(self) -> float:
        """Of the step."""
        return self.passes + self.copies + self.update + self.exchange


def fitted_link(rows: Sequence[Row], operation: Operation, world_size: int) -> Link:
    """Fit an operation's messages: a small one takes the latency, large ones so many bytes per second."""
    own = [row for row in rows if row["operation"] == operation]
    latency = min(own, key=lambda row: row["bytes"])["seconds"]
    carried = PASSES[operation] * (1 - 1 / world_size)
    speeds = [carried * row["bytes"] / (row["seconds"] - latency) for row in own if row["bytes"] >= LARGE]
    return Link(bytes_per_second=statistics.median(speeds), latency=latency)


def flattening_rate(rows: Sequence[Row]) -> float:
    """Return the seconds that `FLATTEN` takes for a byte of a large tensor."""
    own = [row for row in rows if row["operation"] == FLATTEN and row["bytes"] >= LARGE]
    return statistics.median(row["seconds"] / row["bytes"] for row in own)


def traffic_of_case(case: Case, device: torch.device, *, sizes: Sequence[int], modules: int) -> list[Traffic]:
    """Return what a case's ranks should send each other in a step."""
    ds_config = case.read_ds_config(device)
    return traffic_of_step(
        ds_config,
        sizes=sizes,
        modules=modules,
        itemsize=training_dtype(ds_config).itemsize,
        micro_batches=case.micro_batches,
    )


def predict(
    case: Case,
    singles: Mapping[str, Row],
    traffic: Sequence[Traffic],
    links: Mapping[Operation, Link],
    flattening: float,
) -> Predicted:
    """Predict a case on several ranks.

    Args:
        case: what is predicted.
        singles: by ds_config, seconds of the parts of a step of `unibert.bench.scaling.cases.single`.
        traffic: what the ranks send each other.
        links: by operation.
        flattening: see `flattening_rate`.
    """
    stage = zero_stage(case.read_ds_config(torch.device("cpu")))
    plain, own = singles["zero0"], singles[case.ds_config]
    passes = case.micro_batches * (plain["forward"] + plain["backward"])
    # Stages 2 and 3 handle the gradients, and stage 3 its hooks, in each micro-batch.
    times = case.micro_batches if stage >= 2 else 1
    copies = times * (own["forward"] + own["backward"] - plain["forward"] - plain["backward"])
    copies += own["optimizer"] - plain["optimizer"]
    if stage == 0:
        copies += flattening * sum(part.num_bytes for part in traffic)
    return Predicted(
        passes=passes,
        copies=copies,
        update=plain["optimizer"] / (case.ranks if stage else 1),
        exchange=sum(part.seconds(case.ranks, links[part.operation]) for part in traffic),
    )
