"""A copy of another run's checkpoint as the first one of a run that branches off it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from unibert.errors import UserError
from unibert.training.checkpoint.folder import DESCRIPTION, TAG, describe, first_damage, partial_of, publish, sealed
from unibert.training.checkpoint.retention import raise_if_no_room


def adopt(source: Path, folder: Path, state: dict[str, Any]) -> None:
    """Copy the checkpoint ``source`` into ``folder`` with another ``state`` of the run.

    What was measured after the parent's step is left behind: no figure of another run is to be the best of this one.

    Raises:
        UserError: if the checkpoint is damaged or removed meanwhile, or cannot be copied.
    """
    description = describe(source)
    files: dict[str, str] = description["files"]
    complete = folder / source.name
    partial = partial_of(complete)
    try:
        raise_if_no_room(folder, sum((source / name).stat().st_size for name in files))
        shutil.rmtree(partial, ignore_errors=True)
        (partial / TAG).mkdir(parents=True)
        for name in files:
            shutil.copyfile(source / name, partial / name)
        if first_damage(partial, files) is not None:
            raise UserError(f"{source}: is damaged, its content differs from the digests; name another step")
        kept = ("step", "tokens", "world_size", "zero_stage", "seconds", "files")
        copied = {key: description[key] for key in kept} | {"state": state, "milestone": False}
        (partial / DESCRIPTION).write_text(sealed(copied), encoding="utf-8")
        publish(partial, complete)
    except OSError as error:
        raise UserError(
            f"{source}: cannot be copied into {folder} ({error.strerror}: {error.filename}); fix that, and the same "
            "command starts the branch"
        ) from error
