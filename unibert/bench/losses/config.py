"""Options of ``bench kernels``, and its presets of cases."""

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
REHEARSAL_PROVIDERS = ("UniBERT", "eager")
NO_BIAS_PROVIDERS = ("UniBERT", "cce_exact", "Liger JSD, tuned")
"""UniBERT's paths, and peers that do not support a bias."""


@dataclass(kw_only=True)
class KernelBenchConfig:
    """Options of ``unibert bench kernels``. Shapes, losses and distributions replace those of the preset."""

    preset: Literal["auto", "cpu", "goals", "headline", "widths", "rehearsal"] = "auto"
    """Cases to measure. ``goals``: the shapes of the goals on a GPU, in bf16, most important first; ``headline`` and
    ``widths``: a few of these shapes and peers, for a few minutes on a GPU; ``rehearsal``: tiny versions of these two
    for a CPU; ``cpu``: the MLM head in fp32. ``auto`` takes ``cpu`` or ``goals`` by the device."""

    vocab: list[int] | None = None
    """Vocabulary sizes."""

    hidden: list[int] | None = None
    """Hidden sizes of the student. A teacher's is twice as large."""

    rows: list[int] | None = None
    """Numbers of masked rows; for the adversary, of tokens."""

    losses: list[Loss] | None = None
    """Losses to measure."""

    distributions: list[Distribution] | None = None
    """Distributions of the logits: ``uniform`` as at the start of training, ``trained`` with a peaked softmax."""

    providers: list[str] | None = None
    """Measure only providers whose name contains one of these words. Default: a few for ``headline``, ``widths`` and
    ``rehearsal``, else all."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the inputs. Default: the preset's."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device. ``auto`` takes the GPU if there is one."""

    threads: int | None = None
    """CPU threads. Default: 1 if the CPU is measured, all cores if the CPU only draws inputs for a GPU."""

    repeats: int = 3
    """Number of rounds on the CPU."""

    minutes: float | None = None
    """Time limit in minutes. Cases and providers that are not reached are reported as not run."""

    grace_seconds: float = 60.0
    """Seconds after ``minutes`` in which a provider that has started may finish."""

    memory: bool = True
    """Measure memory on the CPU too, in one more process per row."""

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
            raise ValueError("device: cuda needs a CUDA GPU, and torch finds none; take cpu")

    @property
    def resolved_device(self) -> str:
        """``cpu`` or ``cuda``."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def resolved_threads(self) -> int:
        """``threads``, or its default."""
        if self.threads is not None:
            return self.threads
        return len(os.sched_getaffinity(0)) if self.resolved_device == "cuda" else 1

    def providers_for(self, case: Case) -> Sequence[str] | None:
        """Words of which one must be in a provider's name; None for all providers."""
        if self.providers is not None or self.preset not in ("headline", "widths", "rehearsal"):
            return self.providers
        if case.loss != "adversary" and not case.bias:
            return NO_BIAS_PROVIDERS
        if self.preset == "rehearsal" and case.loss != "mlm":
            # On a CPU compilation takes a quarter of a minute for each case.
            return REHEARSAL_PROVIDERS
        return WIDTHS_PROVIDERS if self.preset == "widths" else HEADLINE_PROVIDERS

    def cases(self) -> list[Case]:
        """The cases to measure, in this order."""
        preset = self.preset
        if preset == "auto":
            preset = "goals" if self.resolved_device == "cuda" else "cpu"
        cases = [replace(case, seed=self.seed) for case in _PRESETS[preset]()]
        given = (self.losses, self.vocab, self.hidden, self.rows, self.distributions)
        if any(values is not None for values in given):
            defaults = [list(dict.fromkeys(getattr(case, key) for case in cases)) for key in _AXES]
            axes = [default if values is None else values for values, default in zip(given, defaults, strict=True)]
            product = [
                replace(cases[0], bias=False, **dict(zip(_AXES, values, strict=True)))
                for values in itertools.product(*axes)
            ]
            # The adversary has no vocabulary, and is measured once instead of once for each size.
            cases = list(dict.fromkeys(replace(c, vocab=1) if c.loss == "adversary" else c for c in product))
        return [replace(case, dtype=self.dtype) for case in cases] if self.dtype else cases


_AXES = ("loss", "vocab", "hidden", "rows", "distribution")


def _cpu() -> list[Case]:
    return [Case(rows=2048, vocab=vocab, hidden=384) for vocab in (32_000, 64_000, 120_000, 250_000)]


def _mlm(hidden: int, vocab: int, rows: int = 9_830) -> Case:
    # ModernBERT's decoder has a bias unless its configuration says otherwise.
    return Case(hidden=hidden, vocab=vocab, rows=rows, dtype="bfloat16", bias=True)


def _headline() -> list[Case]:
    """Most important first, since a run may be stopped."""
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


_PRESETS = {"goals": _goals, "headline": _headline, "widths": _widths, "rehearsal": _rehearsal, "cpu": _cpu}
