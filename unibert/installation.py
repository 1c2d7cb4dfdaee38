"""What belongs to the package and lies elsewhere in a checkout than in an installation."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent


def data_folder(name: str) -> Path:
    """The folder ``ds_configs`` or ``slurm``: inside an installed package, at the top of a checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def checkout_project() -> dict[str, Any] | None:
    """What the ``pyproject.toml`` of a checkout says of the project; None in an installation."""
    file = _PACKAGE.parent / "pyproject.toml"
    if not file.is_file():
        return None
    project: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    return project if project.get("name") == "unibert" else None


def unibert_version() -> str:
    """The version that runs. A checkout says it itself: its editable installation may be older, or there is none."""
    if (project := checkout_project()) is not None:
        return str(project["version"])
    try:
        return version("unibert")
    except PackageNotFoundError:
        return "unknown"
