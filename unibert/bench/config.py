"""The benchmark's options, and the lists of cases that come with it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from unibert.bench.case import Case, Distribution, Loss

PRESETS = ("cpu", "goals")


@dataclass(kw_only=True)
class KernelBenchConfig:
    """One run of ``unibert bench kernels``. Given shapes, losses or distributions replace the preset's."""

    preset: Literal["auto", "cpu", "goals"] = "auto"
    """``goals``: the shapes of the goals on a GPU, bf16, most important first; ``cpu``: MLM head in fp32; ``auto``
    takes the one for the device."""

    vocab: list[int] | None = None
    """Vocabulary sizes."""

    hidden: list[int] | None = None
    """Hidden sizes of the student; a teacher's is twice that."""

    rows: list[int] | None = None
    """Masked rows; for the adversary, tokens."""

    losses: list[Loss] | None = None
    """Of mlm, distillation, adversary."""

    distributions: list[Distribution] | None = None
    """``uniform`` as at the start of a training, ``trained`` with peaked softmax."""

    contestants: list[str] | None = None
    """Only those whose name contains one of these words."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """The preset's if not given."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes the GPU if there is one."""

    threads: int = 1
    """CPU threads."""

    repeats: int = 3
    """Rounds on the CPU."""

    minutes: float | None = None
    """Time for everything; cases and contestants that it doesn't reach are reported as not run."""

    memory: bool = True
    """On the CPU, measure memory too: one more process for each row."""

    seed: int = 0
    """Of the inputs."""

    output: Path | None = None
    """Folder for results.json, results.csv and results.png; docs/benchmarks/kernels-<device> if not given."""

    def __post_init__(self) -> None:
        for key, minimum in {"threads": 1, "repeats": 1}.items():
            if getattr(self, key) < minimum:
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

    def cases(self) -> list[Case]:
        """What to measure, in this order."""
        preset = self.preset
        if preset == "auto":
            preset = "goals" if self.resolved_device == "cuda" else "cpu"
        cases = [replace(case, seed=self.seed) for case in (_goals() if preset == "goals" else _cpu())]
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


def _goals() -> list[Case]:
    """A batch of 65,536 tokens has 9,830 masked rows at 15 %, 19,660 at 30 %; 39,320 is four accumulated batches."""

    def mlm(hidden: int, vocab: int, rows: int = 9_830) -> Case:
        return Case(hidden=hidden, vocab=vocab, rows=rows, dtype="bfloat16")

    first = mlm(384, 250_000)
    return [
        first,
        mlm(256, 250_000),
        mlm(768, 250_000),
        replace(first, loss="distillation"),
        replace(first, loss="adversary", rows=65_536, vocab=1),
        mlm(384, 120_000),
        replace(first, distribution="uniform"),
        replace(first, bias=True),
        mlm(384, 250_000, 39_320),
        mlm(512, 250_000),
        mlm(256, 120_000),
        mlm(768, 120_000),
        mlm(384, 250_000, 19_660),
        mlm(512, 120_000),
        replace(mlm(768, 250_000), loss="distillation"),
        replace(mlm(384, 120_000), loss="distillation"),
    ]
