"""Checkpoints that are either whole or not there.

A checkpoint is written into a hidden folder and renamed when all ranks have finished, so a folder named ``step-…``
is always complete. One that was saved by another number of ranks is first converted, into a folder within it that is
written in the same way.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from unibert.errors import AgreedError, UserError
from unibert.training import universal

_TAG = "state"
_UNIVERSAL = "universal"
_PARTIAL = ".partial-"
_DESCRIPTION = "checkpoint.json"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: ``run_dir/checkpoints``.
        keep: how many of the newest to keep.
        rank: this process's rank; only rank 0 renames and removes.
        world_size, zero_stage: of this start; kept beside each checkpoint.
    """

    def __init__(self, folder: Path, *, keep: int, rank: int, world_size: int, zero_stage: int) -> None:
        self.folder = folder
        self._keep = keep
        self._rank = rank
        self._world_size = world_size
        self._zero_stage = zero_stage
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in [*folder.glob(f"{_PARTIAL}*"), *folder.glob(f"step-*/{_PARTIAL}*")]:
                shutil.rmtree(leftover)
        dist.barrier()

    def save(self, engine: Any, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint after ``step`` steps, all ranks together; ``state`` is JSON, and rank 0's counts."""
        complete = self.folder / f"step-{step:08d}"
        if complete.exists():
            return complete
        partial = self.folder / f"{_PARTIAL}{complete.name}"
        engine.save_checkpoint(str(partial), tag=_TAG, save_latest=False)
        dist.barrier()
        if self._rank == 0:
            layout = {"world_size": self._world_size, "zero_stage": self._zero_stage}
            description = {"step": step, **layout, "state": state}
            (partial / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
            _publish(partial, complete)
            for old in complete_checkpoints(self.folder)[: -self._keep]:
                shutil.rmtree(old)
        dist.barrier()
        return complete

    def prepare_newest(self) -> bool:
        """Convert the newest checkpoint if its files are for other ranks than these, all ranks together.

        Returns:
            Whether the engine has to load DeepSpeed's universal form, which must be known when it is built.

        Raises:
            AgreedError: if it was saved under a ZeRO stage that this one cannot continue, or cannot be converted.
        """
        checkpoints = complete_checkpoints(self.folder)
        if not checkpoints:
            return False
        newest = checkpoints[-1]
        description = describe(newest)
        ranks, stage = description["world_size"], description["zero_stage"]
        if stage != self._zero_stage and {stage, self._zero_stage} != {1, 2}:
            raise AgreedError(
                f"{newest}: was saved with zero stage {stage}, this start has {self._zero_stage}; start it with "
                f"{stage} (only 1 and 2 can continue each other's checkpoints)"
            )
        if (ranks, stage) == (self._world_size, self._zero_stage) or stage == 0:
            # Under ZeRO 0 every rank has all of the state.
            return False
        change = f"from world size {ranks}, ZeRO {stage} to world size {self._world_size}, ZeRO {self._zero_stage}"
        universal.run_on_rank_0(lambda: self._convert(newest, change))
        return True

    def _convert(self, checkpoint: Path, change: str) -> None:
        complete, partial = checkpoint / _UNIVERSAL, checkpoint / f"{_PARTIAL}{_UNIVERSAL}"
        if complete.is_dir():
            return
        started = time.perf_counter()
        print(f"unibert: converting {checkpoint} {change}", file=sys.stderr, flush=True)
        try:
            universal.convert(checkpoint / _TAG, partial / _TAG)
            _publish(partial, complete)
        except (UserError, OSError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"{checkpoint}: cannot be converted {change}: {error}; mend that, or start it as it was saved"
            ) from error
        print(f"unibert: converted in {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)

    def load_newest(self, engine: Any) -> dict[str, Any] | None:
        """Restore the newest checkpoint into ``engine``; its ``{"step", "state", …}``, or None if there is none.

        :meth:`prepare_newest` must have gone before.
        """
        checkpoints = complete_checkpoints(self.folder)
        if not checkpoints:
            return None
        newest = checkpoints[-1]
        if engine.load_universal_checkpoint():
            loaded = universal.load(engine, newest / _UNIVERSAL, _TAG)
        else:
            loaded, _ = engine.load_checkpoint(str(newest), tag=_TAG)
        if loaded is None:
            raise AgreedError(f"{newest}: DeepSpeed could not read it; remove the folder to continue from an older one")
        return describe(newest)


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


def _publish(partial: Path, complete: Path) -> None:
    """Give a folder that is wholly written its final name."""
    for path in partial.rglob("*"):
        _flush_to_disk(path)
    partial.rename(complete)
    _flush_to_disk(complete.parent)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
