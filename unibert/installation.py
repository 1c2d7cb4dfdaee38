"""Data and metadata of the package, which lie elsewhere in a checkout than in an installation."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent


def data_folder(name: str) -> Path:
    """Return the folder ``ds_configs`` or ``slurm``: inside an installed package, at the top of a checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def checkout_project() -> dict[str, Any] | None:
    """Return the ``project`` table of a checkout's ``pyproject.toml``; None in an installation."""
    file = _PACKAGE.parent / "pyproject.toml"
    if not file.is_file():
        return None
    project: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    return project if project.get("name") == "unibert" else None


def unibert_version() -> str:
    """Return the running version. In a checkout it is the checkout's own: an installation may be older or missing."""
    if (project := checkout_project()) is not None:
        return str(project["version"])
    try:
        return version("unibert")
    except PackageNotFoundError:
        return "unknown"
