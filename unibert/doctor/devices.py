"""What torch computes on, and the C compiler with which Triton makes its kernels callable."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unibert.doctor.finding import Answer, Finding, ask, fail, ok, warn

TORCH_SECONDS = 180
"""For importing torch from a cold shared disk and compiling a kernel."""

DRIVER_SECONDS = 20


def check_devices() -> Iterator[Finding]:
    """GPUs or cores, a Triton kernel, the compiler."""
    driver = _driver()
    answer = ask([sys.executable, "-m", "unibert.doctor.torch_probe"], TORCH_SECONDS)
    seen, *kernel = _json_lines(answer.output) or [{}]
    if not seen:
        yield fail("torch", answer.reason, "fix that, or install torch anew: https://pytorch.org/get-started/locally")
        return
    gpus = seen["gpus"]
    if gpus:
        yield ok("GPUs", f"{', '.join(gpus)}; driver {driver or 'unknown'}, torch for CUDA {seen['cuda']}")
        for problem in seen["held"]:
            yield warn("GPUs", problem, "nvidia-smi names it")
        if seen["capability"] < [8, 0]:
            yield warn("GPUs", "no bf16 before compute capability 8.0", "take a ds_config of fp16 and attention sdpa")
    elif driver is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield ok("devices", f"{cores} CPU cores, no GPU")
    elif seen["cuda"] is None:
        yield fail(
            "GPUs",
            f"this machine has an NVIDIA GPU (driver {driver}), and torch {seen['torch']} is not built for it",
            "install the build for CUDA that https://pytorch.org/get-started/locally names",
        )
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        yield fail(
            "GPUs",
            f"driver {driver} is here, and torch for CUDA {seen['cuda']} sees no GPU",
            "take a newer driver or a torch for an older CUDA"
            if visible is None
            else f"CUDA_VISIBLE_DEVICES is {visible!r}; name GPUs that nvidia-smi lists",
        )
    yield from _look_at_triton(bool(gpus), kernel, answer)


def _look_at_triton(on_gpu: bool, kernel: list[dict[str, Any]], answer: Answer) -> Iterator[Finding]:
    # As Triton looks for it.
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    found = shutil.which(compiler) if compiler else None
    if not on_gpu:
        yield ok("C compiler", found or "none, and only Triton on a GPU wants one")
        return
    if found is None:
        yield fail("C compiler", f"{compiler or 'none'} is not there, and Triton wants one", "install gcc or set CC")
    else:
        yield ok("C compiler", found)
    if kernel == [{"kernel": True}]:
        yield ok("Triton", "a kernel compiles and runs")
    elif kernel:
        yield fail("Triton", "a kernel runs and gives wrong numbers", "install the triton that torch was built with")
    else:
        yield fail(
            "Triton", answer.reason, "fix that; until then mlm.path, distillation.path and adversary.path: chunked"
        )


def _driver() -> str | None:
    """The NVIDIA driver's version, if this machine has an NVIDIA GPU."""
    said = ask(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], DRIVER_SECONDS)
    if said.status == 0 and said.output.strip():
        return said.output.split()[0]
    return "silent" if Path("/dev/nvidia0").exists() else None


def _json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
