"""Where the run file lies that a word on the command line means."""

from __future__ import annotations

from pathlib import Path

from unibert.errors import UserError

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """The run files that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def run_file(name: str) -> Path:
    """The YAML file that ``name`` means: a path, or a preset that ships with the package."""
    preset = PRESETS / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    if preset.is_file():
        return preset
    raise UserError(f"{name}: no such run file, and no preset of that name; presets are {', '.join(preset_names())}")
