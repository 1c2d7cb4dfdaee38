"""The benchmark's options, and the lists of cases that come with it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from unibert.bench.losses.case import Case, Distribution, Loss

HEADLINE_PROVIDERS = ("UniBERT", "eager", "torch.compile", "Liger, default", "Liger, tuned")
WIDTHS_PROVIDERS = ("UniBERT", "eager", "torch.compile", "Liger, tuned")
REHEARSED_PROVIDERS = ("UniBERT", "eager")
WITHOUT_BIAS_PROVIDERS = ("UniBERT", "cce_exact", "Liger JSD, tuned")
"""Peers that take no bias, beside ours."""


@dataclass(kw_only=True)
class KernelBenchConfig:
    """One run of ``unibert bench kernels``. Given shapes, losses or distributions replace the preset's."""

    preset: Literal["auto", "cpu", "goals", "headline", "widths", "rehearsal"] = "auto"
    """Cases to measure. ``goals``: the shapes of the goals on a GPU, in bf16, most important first; ``headline`` and
    ``widths``: a few of these shapes and peers, for minutes on a GPU; ``rehearsal``: tiny stand-ins for those two on a
    CPU; ``cpu``: the MLM head in fp32. ``auto`` takes ``cpu`` or ``goals`` by the device."""

    vocab: list[int] | None = None
    """Vocabulary sizes."""

    hidden: list[int] | None = None
    """Hidden sizes of the student. A teacher's is twice as large."""

    rows: list[int] | None = None
    """Numbers of masked rows; for the adversary, of tokens."""

    losses: list[Loss] | None = None
    """Losses to measure."""

    distributions: list[Distribution] | None = None
    """Distributions of the logits: ``uniform`` as at the start of a training, ``trained`` with a peaked softmax."""

    providers: list[str] | None = None
    """Measure only providers whose name contains one of these words. Default: a few for ``headline``, ``widths`` and
    ``rehearsal``, else all."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the inputs. Default: the preset's."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device. ``auto`` takes the GPU if there is one."""

    threads: int | None = None
    """CPU threads. Default: 1 if the CPU is measured, all cores if they draw the inputs for a GPU."""

    repeats: int = 3
    """Number of rounds on the CPU."""

    minutes: float | None = None
    """Minutes for everything. Cases and providers that do not fit are reported as not run."""

    grace_seconds: float = 60.0
    """Seconds beyond ``minutes`` in which a provider that has begun may end."""

    memory: bool = True
    """Measure memory on the CPU too, with one more process per row."""

    seed: int = 0
    """Seed of the inputs."""

    tables: bool = True
    """Write results.csv and results.png beside results.json."""

    output: Path | None = None
    """Folder for the results. Default: docs/benchmarks/kernels-DEVICE."""

    def __post_init__(self) -> None:
        for key, minimum in {"threads": 1, "repeats": 1}.items():
            if getattr(self, key) is not None and getattr(self, key) < minimum:
                raise ValueError(f"{key}: must be at least {minimum}, got {getattr(self, key)}")
        for key in ("vocab", "hidden", "rows"):
            if any(size < 1 for size in getattr(self, key) or []):
                raise ValueError(f"{key}: sizes must be positive, got {getattr(self, key)}")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes: must be positive, got {self.minutes}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: cuda was asked for, but torch finds no CUDA GPU here; take cpu")

    @property
    def resolved_device(self) -> str:
        """``cpu`` or ``cuda``."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def resolved_threads(self) -> int:
        """``threads``, or what its absence means."""
        if self.threads is not None:
            return self.threads
        return len(os.sched_getaffinity(0)) if self.resolved_device == "cuda" else 1

    def providers_for(self, case: Case) -> Sequence[str] | None:
        """Words of which one is in the names of those who take part; None: everybody."""
        if self.providers is not None or self.preset not in ("headline", "widths", "rehearsal"):
            return self.providers
        if case.loss != "adversary" and not case.bias:
            return WITHOUT_BIAS_PROVIDERS
        if self.preset == "rehearsal" and case.loss != "mlm":
            # Compiling takes a CPU a quarter of a minute a case.
            return REHEARSED_PROVIDERS
        return WIDTHS_PROVIDERS if self.preset == "widths" else HEADLINE_PROVIDERS

    def cases(self) -> list[Case]:
        """What to measure, in this order."""
        preset = self.preset
        if preset == "auto":
            preset = "goals" if self.resolved_device == "cuda" else "cpu"
        listed = {"goals": _goals, "headline": _headline, "widths": _widths, "rehearsal": _rehearsal, "cpu": _cpu}[
            preset
        ]()
        cases = [replace(case, seed=self.seed) for case in listed]
        given = (self.losses, self.vocab, self.hidden, self.rows, self.distributions)
        if any(axis is not None for axis in given):
            own = [list(dict.fromkeys(getattr(case, key) for case in cases)) for key in _AXES]
            axes = [values if values is not None else rest for values, rest in zip(given, own, strict=True)]
            crossed = [
                replace(cases[0], bias=False, **dict(zip(_AXES, values, strict=True)))
                for values in itertools.product(*axes)
            ]
            # The adversary has no vocabulary, and should not be measured once for each.
            cases = list(dict.fromkeys(replace(c, vocab=1) if c.loss == "adversary" else c for c in crossed))
        return [replace(case, dtype=self.dtype) for case in cases] if self.dtype else cases


_AXES = ("loss", "vocab", "hidden", "rows", "distribution")


def _cpu() -> list[Case]:
    return [Case(rows=2048, vocab=vocab, hidden=384) for vocab in (32_000, 64_000, 120_000, 250_000)]


def _mlm(hidden: int, vocab: int, rows: int = 9_830) -> Case:
    # ModernBERT's decoder has a bias unless its configuration says otherwise.
    return Case(hidden=hidden, vocab=vocab, rows=rows, dtype="bfloat16", bias=True)


def _headline() -> list[Case]:
    """Most important first: a run that is stopped has measured those."""
    first = _mlm(384, 250_000)
    distilled = replace(first, loss="distillation")
    adversary = replace(first, loss="adversary", rows=64 * 512, vocab=1, bias=False)
    return [first, distilled, adversary, replace(first, bias=False), replace(distilled, bias=False)]


def _widths() -> list[Case]:
    return [_mlm(768, 250_000), _mlm(256, 250_000), replace(_mlm(768, 250_000), loss="distillation")]


def _rehearsal() -> list[Case]:
    first = Case(rows=40, hidden=32, vocab=300, bias=True)
    return [
        first,
        replace(first, loss="distillation"),
        replace(first, loss="adversary", rows=200, vocab=1, bias=False),
        replace(first, bias=False),
    ]


def _goals() -> list[Case]:
    """A batch of 65,536 tokens has 9,830 masked rows at 15 %, 19,660 at 30 %; 39,320 is four accumulated batches."""
    first = _mlm(384, 250_000)
    return [
        first,
        _mlm(256, 250_000),
        _mlm(768, 250_000),
        replace(first, loss="distillation"),
        replace(first, loss="adversary", rows=65_536, vocab=1, bias=False),
        _mlm(384, 120_000),
        replace(first, distribution="uniform"),
        replace(first, bias=False),
        _mlm(384, 250_000, 39_320),
        _mlm(512, 250_000),
        _mlm(256, 120_000),
        _mlm(768, 120_000),
        _mlm(384, 250_000, 19_660),
        _mlm(512, 120_000),
        replace(_mlm(768, 250_000), loss="distillation"),
        replace(_mlm(384, 120_000), loss="distillation"),
    ]
