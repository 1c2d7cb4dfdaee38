"""``unibert slurm``: write the job scripts that ship with the package into a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from unibert.errors import UserError
from unibert.installation import data_folder

_NAMES = ("*.sh", "*.example")


@dataclass(kw_only=True)
class JobScriptsConfig:
    """Where to write the scripts."""

    output: str = "slurm"
    """Folder for the scripts. They find each other by this name: if it is relative, submit jobs from the
    current folder."""

    overwrite: bool = False
    """Replace existing scripts that differ. site.env is never changed."""


def write_job_scripts(config: JobScriptsConfig) -> None:
    """Write the scripts, then print what was written and how to submit a job.

    Raises:
        UserError: if bash would need quotes for the folder's name, the folder cannot be written, or files in it differ
            and may not be overwritten; then nothing is written.
    """
    if not re.fullmatch(r"[\w./+@%:,=-]+", config.output) or config.output.startswith("-"):
        raise UserError(
            f"output: {config.output!r} would have to be quoted in the scripts; choose a name without blanks or quotes"
        )
    folder = Path(config.output)
    try:
        states = _write(folder, _scripts_for(folder), config.overwrite)
    except OSError as error:
        raise UserError(f"output: {folder} cannot be written ({error.strerror}); choose another folder") from error
    for path, state in states.items():
        print(f"{state}  {path}")
    where = "" if folder.is_absolute() else " from this folder"
    print(
        f"\nCopy {folder}/site.env.example to {folder}/site.env and keep what your site needs. Submit{where}:\n\n"
        f"    sbatch --gpus-per-node=8 --ntasks-per-node=8 {folder}/pretrain.sh small --corpus corpus "
        "--run_dir runs/small"
    )


def _scripts_for(folder: Path) -> dict[Path, bytes]:
    """Return path and content of each script. sbatch runs a copy, so scripts find each other by their folder's name."""
    source = data_folder("slurm")
    paths = sorted(path for pattern in _NAMES for path in source.glob(pattern))
    return {folder / path.name: path.read_bytes().replace(b"slurm/", f"{folder}/".encode()) for path in paths}


def _write(folder: Path, scripts: dict[Path, bytes], overwrite: bool) -> dict[Path, str]:
    """Write the scripts; return for each whether it was written or was there already."""
    states = {
        path: "unchanged" if path.exists() and path.read_bytes() == content else "written  "
        for path, content in scripts.items()
    }
    changed = [str(path) for path, state in states.items() if state != "unchanged" and path.exists()]
    if changed and not overwrite:
        differ = "differs" if len(changed) == 1 else "differ"
        raise UserError(
            f"{', '.join(changed)}: {differ} from what would be written; choose another --output, or give "
            "--overwrite (site.env is never changed)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in scripts.items():
        if states[path] != "unchanged":
            path.write_bytes(content)
        mode = path.stat().st_mode
        # Whoever may read a script may execute it. environment.sh has no #! and is only sourced.
        new_mode = mode | (mode & 0o444) >> 2 if content.startswith(b"#!") else mode
        if mode != new_mode:
            path.chmod(new_mode)
    return states
