"""The hardware and software on which a result was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("unibert", "torch", "deepspeed", "transformers", "webdataset", "sentencepiece", "triton")


def describe_environment() -> dict[str, object]:
    """Return device, cores, and versions of Python and relevant packages, fit for JSON."""
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
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").split("\n") if cpuinfo.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those ``packages`` that are installed."""
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
