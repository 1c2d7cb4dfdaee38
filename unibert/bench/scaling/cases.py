"""What ``bench scaling`` measures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unibert.training.engine import ds_config_path, read_ds_config

STAGES = ("zero0", "zero1", "zero2", "zero3")
BUCKETS = (5_000_000, 500_000_000)
"""Elements of ``reduce_bucket_size`` beside the 50 million of the files: many messages, and DeepSpeed's default."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training, whose steps are timed."""

    name: str
    ds_config: str
    """One of the files in ds_configs, without its extension."""
    ranks: int = 1
    copies: int = 1
    """Trainings that run at the same time and know nothing of each other, to share the machine as ranks do."""
    micro_batches: int = 1
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What differs in its ``zero_optimization``."""

    def write_ds_config(self, folder: Path) -> str:
        """Write the ds_config of this case into ``folder``, if it is not one of the files; return its name or path."""
        if not self.changes:
            return self.ds_config
        content = json.loads(ds_config_path(self.ds_config).read_text(encoding="utf-8"))
        content["zero_optimization"] |= self.changes
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    def read_ds_config(self, device: torch.device) -> dict[str, Any]:
        """Return the ds_config of this case as it is for ``device``."""
        content = read_ds_config(ds_config_path(self.ds_config), device)
        return content | {"zero_optimization": content["zero_optimization"] | self.changes}


def single(ranks: int, stage: str) -> Case:
    """A rank of its own, beside as many others as train together in the other cases."""
    return Case(name=f"{ranks} × 1 rank, {stage}", ds_config=stage, copies=ranks)


def all_cases(ranks: int, micro_batches: int) -> Iterator[Case]:
    """Yield the cases: single ranks, ranks together under each stage, and under changed settings."""
    for stage in STAGES:
        yield single(ranks, stage)
    for stage in STAGES:
        yield Case(name=f"{ranks} ranks, {stage}", ranks=ranks, ds_config=stage)
    for stage in STAGES:
        name = f"{ranks} ranks, {stage}, {micro_batches} micro-batches"
        yield Case(name=name, ranks=ranks, ds_config=stage, micro_batches=micro_batches)
    for stage in STAGES[1:]:
        changes: dict[str, Any] = {"overlap_comm": False}
        yield Case(name=f"{ranks} ranks, {stage}, no overlap", ranks=ranks, ds_config=stage, changes=changes)
    for stage in STAGES[1:]:
        for size in BUCKETS:
            name = f"{ranks} ranks, {stage}, buckets of {size // 1_000_000}M"
            yield Case(name=name, ranks=ranks, ds_config=stage, changes={"reduce_bucket_size": size})
    changes = {"use_multi_rank_bucket_allreduce": False}
    yield Case(name=f"{ranks} ranks, zero1, shares to owners", ranks=ranks, ds_config="zero1", changes=changes)
    for stage in STAGES[:2]:
        yield Case(name=f"1 rank, {stage}", ds_config=stage)
        # The same global batch as that of several ranks.
        yield Case(name=f"1 rank, {stage}, {ranks} micro-batches", ds_config=stage, micro_batches=ranks)
