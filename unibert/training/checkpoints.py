"""Checkpoints that are either whole or not there.

A checkpoint is written into a hidden folder and renamed when all ranks have finished, so a folder named ``step-…``
is always complete.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from unibert.errors import AgreedError

_TAG = "state"
_DESCRIPTION = "checkpoint.json"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: ``run_dir/checkpoints``.
        keep: how many of the newest to keep.
        rank: this process's rank; only rank 0 renames and removes.
        layout: what must be the same to load (world size, ZeRO stage), kept beside each checkpoint.
    """

    def __init__(self, folder: Path, *, keep: int, rank: int, layout: dict[str, int]) -> None:
        self.folder = folder
        self._keep = keep
        self._rank = rank
        self._layout = layout
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".partial-*"):
                shutil.rmtree(leftover)
        dist.barrier()

    def save(self, engine: Any, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint after ``step`` steps, all ranks together; ``state`` is JSON, and rank 0's counts."""
        complete = self.folder / f"step-{step:08d}"
        if complete.exists():
            return complete
        partial = self.folder / f".partial-{complete.name}"
        engine.save_checkpoint(str(partial), tag=_TAG, save_latest=False)
        dist.barrier()
        if self._rank == 0:
            description = {"step": step, **self._layout, "state": state}
            (partial / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
            for path in partial.rglob("*"):
                _flush_to_disk(path)
            partial.rename(complete)
            _flush_to_disk(self.folder)
            for old in complete_checkpoints(self.folder)[: -self._keep]:
                shutil.rmtree(old)
        dist.barrier()
        return complete

    def load_newest(self, engine: Any) -> dict[str, Any] | None:
        """Restore the newest checkpoint into ``engine``; its ``{"step", "state", …}``, or None if there is none.

        Raises:
            AgreedError: if it was saved by another number of ranks or under another ZeRO stage.
        """
        checkpoints = complete_checkpoints(self.folder)
        if not checkpoints:
            return None
        newest = checkpoints[-1]
        description = describe(newest)
        for key, now in self._layout.items():
            if description[key] != now:
                raise AgreedError(
                    f"{newest}: was saved with {key.replace('_', ' ')} {description[key]}, this start has {now}; "
                    f"start it with {description[key]}"
                )
        loaded, _ = engine.load_checkpoint(str(newest), tag=_TAG)
        if loaded is None:
            raise AgreedError(f"{newest}: DeepSpeed could not read it; remove the folder to continue from an older one")
        return description


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _DESCRIPTION).is_file())


def describe(checkpoint: Path) -> dict[str, Any]:
    """What was kept beside a checkpoint: step, layout and stream state."""
    return json.loads((checkpoint / _DESCRIPTION).read_text(encoding="utf-8"))


def full_state_dict(checkpoint: Path) -> dict[str, Any]:
    """The trained module's fp32 weights, put together from all ranks' files. Needs no GPU and no ranks."""
    if describe(checkpoint)["zero_stage"] == 0:
        file = checkpoint / _TAG / "mp_rank_00_model_states.pt"
        state = torch.load(file, map_location="cpu", weights_only=False)["module"]
        return {name: tensor.float() for name, tensor in state.items()}
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # It reports its progress with print and a bar of its own.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=_TAG)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
