"""Training speeds measured on accelerators, from which `unibert plan` estimates the speed of a run.

The share of the peak that a training reaches is the one that others, or ``unibert bench gpu``, measured with models of
similar cost.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unibert.accelerators import GPUS, Accelerator
from unibert.errors import UserError
from unibert.model.config import AdversaryConfig
from unibert.model.cost import EncoderShape, flops_by_part


@dataclass(frozen=True, kw_only=True)
class MeasuredSpeed:
    """The speed of a training that was timed."""

    name: str
    tokens_per_second: float
    """Throughput of one device."""
    flops_per_token: float
    peak_tflops: float

    @property
    def efficiency(self) -> float:
        """Share of the device's peak, counting the FLOPs that the hardware executes."""
        return self.tokens_per_second * self.flops_per_token / (1e12 * self.peak_tflops)


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Measured speeds and their source."""

    source: str
    points: tuple[MeasuredSpeed, ...]
    """Points that the curve interpolates, cheapest model first."""
    beside: tuple[MeasuredSpeed, ...] = ()
    """Further measurements, which show how far a training may be from the curve."""

    def efficiency(self, flops_per_token: float) -> float:
        """Expected share of the peak: interpolated over log cost, constant outside the points."""
        costs = [math.log(point.flops_per_token) for point in self.points]
        return float(np.interp(math.log(flops_per_token), costs, [point.efficiency for point in self.points]))

    def spread(self) -> tuple[float, float]:
        """Lowest and highest ratio of the further measurements to the curve, 1 included."""
        factors = [1.0, *(point.efficiency / self.efficiency(point.flops_per_token) for point in self.beside)]
        return min(factors), max(factors)


def _published_speed(name: str, speed: float, hidden: int, layers: int, intermediate: int, vocab: int) -> MeasuredSpeed:
    # Sequences of 1024 tokens, of which 30 % are masked; the head's logits are computed once.
    shape = EncoderShape.modernbert(hidden, layers, intermediate, vocab)
    flops = flops_by_part(shape, length=1024, masked=0.3, masks=False, recompute=0.0)
    return MeasuredSpeed(
        name=name,
        tokens_per_second=speed,
        flops_per_token=sum(flops.values()),
        peak_tflops=GPUS["h100"].peak_tflops,
    )


PUBLISHED = Speeds(
    source="from other trainers' published speeds on H100s (Ettin, arXiv 2507.11412; mmBERT, arXiv 2509.06888), not "
    "measured with UniBERT: run 'unibert bench gpu', whose result replaces them",
    points=(
        _published_speed("Ettin 17M", 985e3, 256, 7, 384, 50_368),
        _published_speed("Ettin 32M", 655e3, 384, 10, 576, 50_368),
        _published_speed("Ettin 68M", 463e3, 512, 19, 768, 50_368),
        _published_speed("Ettin 150M", 296e3, 768, 22, 1152, 50_368),
    ),
    beside=(
        _published_speed("mmBERT small", 434e3, 384, 22, 1152, 256_000),
        _published_speed("mmBERT base", 108e3, 768, 22, 1152, 256_000),
    ),
)
"""Tokens per second and H100 as the authors report them. Two assumptions: they belong to the main phase, with sequences
of 1024 tokens and 30 % masked, and other GPUs reach the same share of their peak."""

CPU_SPEEDS = Speeds(
    source="measured with the demo's teacher of 2.5M parameters on 2 cores of an AMD EPYC "
    "(docs/benchmarks/planning-cpu.json)",
    points=(MeasuredSpeed(name="demo-teacher", tokens_per_second=4448, flops_per_token=10.84e6, peak_tflops=0.1),),
)
"""Speed of one of two ranks with a core each; the peak is the median of `measure_cpu` of `unibert.accelerators` before
and after."""


def speeds_for(accelerator: Accelerator, benchmarks: Path) -> Speeds:
    """Return the results of ``unibert bench gpu`` on ``accelerator`` under ``benchmarks``, else `PUBLISHED`.

    Raises:
        UserError: if a result cannot be read.
    """
    if accelerator.device_type == "cpu":
        return CPU_SPEEDS
    for folder in sorted(benchmarks.glob("gpu-*")):
        speeds = _benchmark_speeds(folder, accelerator)
        if speeds is not None:
            return speeds
    return PUBLISHED


def _benchmark_speeds(folder: Path, accelerator: Accelerator) -> Speeds | None:
    """Return the fastest short training in ``folder``, None if none ran on ``accelerator`` without error."""
    summary, training = folder / "summary.json", folder / "training.json"
    if not summary.is_file() or not training.is_file():
        return None
    try:
        device = json.loads(summary.read_text(encoding="utf-8"))["environment"]["device"]
        runs = json.loads(training.read_text(encoding="utf-8"))["runs"]
        if device != accelerator.product:
            return None
        points = [_short_training_speed(name, run, accelerator) for name, run in runs.items() if _is_usable(name, run)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: does not hold valid results of 'unibert bench gpu' ({type(error).__name__}: {error}); run it "
            "again or remove the folder"
        ) from error
    if not points:
        return None
    fastest = max(points, key=lambda point: point.tokens_per_second)
    return Speeds(source=f"measured by 'unibert bench gpu' ({folder}: {fastest.name})", points=(fastest,))


def _is_usable(name: str, run: dict[str, Any]) -> bool:
    return "failed" not in run and not name.startswith("distillation")


def _short_training_speed(name: str, run: dict[str, Any], accelerator: Accelerator) -> MeasuredSpeed:
    """Speed of one of `unibert.bench.gpu.short_training`: four documents per sequence, sizes from its result."""
    size = run["size"]
    shape = EncoderShape.modernbert(size["hidden"], size["layers"], 3 * size["hidden"] // 2, size["vocab"])
    flops = flops_by_part(
        shape,
        length=size["sequence"] // 4,
        masked=0.15,
        masks=False,
        recompute=float(name == "recompute"),
        adversary=AdversaryConfig(),
        num_languages=16,
        documents_per_token=4 / size["sequence"],
    )
    return MeasuredSpeed(
        name=name,
        tokens_per_second=run["tokens_per_second"],
        flops_per_token=sum(flops.values()),
        peak_tflops=accelerator.peak_tflops,
    )
