"""Lookup of run files by path or by the name of a preset."""

from __future__ import annotations

from pathlib import Path

from unibert.errors import UserError

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Return the names of the run files that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def run_file(name: str) -> Path:
    """Return the YAML file for ``name``: a path, or a preset that ships with the package.

    Raises:
        UserError: if there is neither.
    """
    preset = PRESETS / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    if preset.is_file():
        return preset
    raise UserError(f"{name}: no such run file, and no preset of that name; presets are {', '.join(preset_names())}")
