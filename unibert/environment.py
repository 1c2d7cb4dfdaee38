"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("unibert", "torch", "deepspeed", "transformers", "webdataset", "sentencepiece", "triton")


def describe_environment() -> dict[str, object]:
    """Device, cores, Python and the versions of the packages that matter, fit for JSON."""
    return {
        "device": _gpu() or _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": package_versions(PACKAGES),
    }


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").split("\n") if information.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Those of ``packages`` that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
