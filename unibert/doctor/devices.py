"""Check torch's devices, and the C compiler with which Triton builds the launchers of its kernels."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unibert.doctor.finding import CommandResult, Finding, fail, ok, run_command, warn
from unibert.machine import too_few_cores

TORCH_SECONDS = 180
"""Time limit for importing torch from a shared disk without caches and compiling a kernel."""

DRIVER_SECONDS = 20


def check_devices(loader_processes: int | None = None) -> Iterator[Finding]:
    """Check GPUs or cores, a Triton kernel, and the C compiler.

    Args:
        loader_processes: those of a rank of the run to check; with one rank per GPU, each needs cores for them.
    """
    driver = _driver_version()
    probe = run_command([sys.executable, "-m", "unibert.doctor.torch_probe"], TORCH_SECONDS)
    devices, *kernel = _json_lines(probe.output) or [{}]
    if not devices:
        yield fail("torch", probe.reason, "fix that, or reinstall torch: https://pytorch.org/get-started/locally")
        return
    gpus = devices["gpus"]
    if gpus:
        yield ok("GPUs", f"{', '.join(gpus)}; driver {driver or 'unknown'}, torch for CUDA {devices['cuda']}")
        for problem in devices["held"]:
            yield warn("GPUs", problem, "nvidia-smi shows the process")
        yield from _check_cores(len(gpus), loader_processes)
        if devices["capability"] < [8, 0]:
            yield warn("GPUs", "no bf16 below compute capability 8.0", "use a ds_config with fp16 and attention sdpa")
    elif driver is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield ok("devices", f"{cores} CPU cores, no GPU")
    elif devices["cuda"] is None:
        yield fail(
            "GPUs",
            f"this machine has an NVIDIA GPU (driver {driver}), but torch {devices['torch']} is built without CUDA",
            "install the CUDA build that https://pytorch.org/get-started/locally names",
        )
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        yield fail(
            "GPUs",
            f"driver {driver} is installed, but torch for CUDA {devices['cuda']} finds no GPU",
            "install a newer driver or a torch for an older CUDA"
            if visible is None
            else f"CUDA_VISIBLE_DEVICES is {visible!r}; set it to GPUs that nvidia-smi lists",
        )
    yield from _check_triton(bool(gpus), kernel, probe)


def _check_cores(num_gpus: int, loader_processes: int | None) -> Iterator[Finding]:
    """Check the cores that this process, started by `srun` or not, may use."""
    cores = len(os.sched_getaffinity(0))
    problems = [] if loader_processes is None else too_few_cores(cores // num_gpus, loader_processes)
    if problems:
        yield warn("cores", *problems[0].split("; ", 1))
    else:
        yield ok("cores", f"{cores} for {num_gpus} GPUs")


def _check_triton(on_gpu: bool, kernel: list[dict[str, Any]], probe: CommandResult) -> Iterator[Finding]:
    # The order in which Triton searches for a compiler.
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    path = shutil.which(compiler) if compiler else None
    if not on_gpu:
        yield ok("C compiler", path or "none; only Triton on a GPU needs one")
        return
    if path is None:
        message = f"{compiler} does not exist" if compiler else "none installed"
        yield fail("C compiler", f"{message}, and Triton needs one", "install gcc or set CC")
    else:
        yield ok("C compiler", path)
    if kernel == [{"kernel": True}]:
        yield ok("Triton", "a kernel compiles and runs")
    elif kernel:
        yield fail("Triton", "a kernel runs but returns wrong numbers", "install the triton that torch was built with")
    else:
        yield fail(
            "Triton", probe.reason, "fix that; until then set mlm.path, distillation.path and adversary.path to chunked"
        )


def _driver_version() -> str | None:
    """Return the NVIDIA driver's version, None without an NVIDIA GPU."""
    query = run_command(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], DRIVER_SECONDS)
    if query.status == 0 and query.output.strip():
        return query.output.split()[0]
    return "unknown" if Path("/dev/nvidia0").exists() else None


def _json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
