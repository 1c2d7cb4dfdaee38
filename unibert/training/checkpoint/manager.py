"""Checkpoints that are either whole or not there.

Every rank copies its part and writes the copy in the background, into a hidden folder. When all have finished, rank 0
describes the parts with their digests and renames the folder, so one named ``step-…`` is always complete. What is read
again is held against the digests first. A checkpoint that was saved by another number of ranks is converted, into a
folder within it that is written in the same way.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from unibert.errors import AgreedError, UserError
from unibert.files import file_sha256
from unibert.training.checkpoint import universal
from unibert.training.checkpoint.claim import Claim
from unibert.training.checkpoint.files import Copies, Written, flush_to_disk, write
from unibert.training.checkpoint.retention import RetentionPolicy, raise_if_no_room
from unibert.training.ranks.collectives import agree, gather_objects, run_on_rank_0, wait_together

_TAG = "state"
_UNIVERSAL = "universal"
_PARTIAL = ".partial-"
_DAMAGED = "damaged-"
_DESCRIPTION = "checkpoint.json"
_DIGESTS = "digests.json"
_RESTART = "the newest complete checkpoint is kept; make room and the same command continues from it"


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    complete: Path
    description: dict[str, Any]
    writing: Future[Written]
    seconds_waited: float
    """How long the training stood still for it."""


class Checkpoints:
    """The checkpoints of one run. All methods are for all ranks together.

    Args:
        folder: ``run_dir/checkpoints``.
        keep: which to keep.
        claim: rank 0's, to the run folder.
        rank: this process's rank; only rank 0 renames and removes.
        world_size, zero_stage: of this start; kept beside each checkpoint.
    """

    def __init__(
        self, folder: Path, *, keep: RetentionPolicy, claim: Claim | None, rank: int, world_size: int, zero_stage: int
    ) -> None:
        self.folder = folder
        self._keep = keep
        self._claim = claim
        self._rank = rank
        self._world_size = world_size
        self._zero_stage = zero_stage
        self._newest: Path | None = None
        self._copies = Copies()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="unibert-checkpoints")
        self._pending: _Pending | None = None
        self._reserving: Future[None] | None = None
        run_on_rank_0(self._remove_leftovers)

    def reserve_memory(self, num_bytes: int, *, pinned: bool) -> None:
        """Have memory ready in which the first checkpoint is copied: of this rank's part, page-locked for a GPU."""
        self._reserving = self._thread.submit(self._copies.reserve, num_bytes, pinned=pinned)

    def begin(
        self, engine: Any, step: int, state: dict[str, Any], *, tokens: int, heldout_mlm_loss: float | None = None
    ) -> None:
        """Copy the run as it is after ``step`` steps; the copy is written while the run goes on.

        Args:
            engine: DeepSpeed's.
            step: optimizer steps done.
            state: JSON, of which rank 0's counts.
            tokens: consumed so far.
            heldout_mlm_loss: after this step, in nats per masked token, where it was measured.

        Raises:
            AgreedError: where the disk has no room for it, the one before could not be written, or a later start has
                claimed the run.
        """
        started = time.perf_counter()
        self.finish()
        if self._reserving is not None:
            self._reserving.result()
        complete = self.folder / f"step-{step:08d}"
        partial = _partial(complete)
        run_on_rank_0(lambda: self._create(partial))
        # DeepSpeed's own file format, read back by its own functions; only who writes it differs.
        engine.checkpoint_engine.save = self._copies.copy
        engine.save_checkpoint(str(partial), tag=_TAG, save_latest=False)
        self._raise_if_no_room(partial)
        description = {
            "step": step,
            "tokens": tokens,
            "heldout_mlm_loss": heldout_mlm_loss,
            "world_size": self._world_size,
            "zero_stage": self._zero_stage,
            "state": state,
        }
        writing = self._thread.submit(write, self._copies.take())
        self._pending = _Pending(complete, description, writing, time.perf_counter() - started)

    @property
    def written(self) -> bool:
        """Whether this rank has written, or failed to write, its part of the checkpoint that was begun."""
        return self._pending is not None and self._pending.writing.done()

    def publish(self) -> None:
        """Give the checkpoint that all ranks have written its name, and remove those that are no longer kept.

        Raises:
            AgreedError: where a rank could not write its part or a later start has claimed the run; the newest complete
                checkpoint is kept.
        """
        assert self._pending is not None
        pending, self._pending = self._pending, None
        partial = _partial(pending.complete)
        try:
            parts: Written | None = pending.writing.result()
            mistake = None
        except (OSError, RuntimeError) as error:
            # Of a full disk torch.save says only that a stream failed.
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            parts = None
            mistake = UserError(f"{partial}: cannot be written ({reason}), as with a full disk or a quota; {_RESTART}")
        # A later start has removed what this one was writing, and is then the reason.
        run_on_rank_0(self._raise_if_superseded)
        try:
            agree(mistake)
        except AgreedError:
            if self._rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        written = [part for part in gather_objects(parts) if part is not None]

        def name() -> None:
            with _writing(partial):
                self._name(pending, written)

        run_on_rank_0(name)

    def finish(self) -> None:
        """Wait until the checkpoint that was begun, if any, is complete, however long that takes."""
        if self._pending is not None:
            wait_together(self._pending.writing)
            self.publish()

    def _remove_leftovers(self) -> None:
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in [*self.folder.glob(f"{_PARTIAL}*"), *self.folder.glob(f"step-*/{_PARTIAL}*")]:
                # An earlier start may still be writing into it.
                shutil.rmtree(leftover.rename(f"{leftover}-{time.time_ns()}"), ignore_errors=True)

    def _create(self, partial: Path) -> None:
        self._raise_if_superseded()
        with _writing(partial):
            (partial / _TAG).mkdir(parents=True, exist_ok=True)

    def _raise_if_superseded(self) -> None:
        if self._claim is not None:
            with _writing(self.folder):
                self._claim.raise_if_superseded()

    def _name(self, pending: _Pending, written: list[Written]) -> None:
        complete, partial = pending.complete, _partial(pending.complete)
        descriptions = {}
        for path in complete_checkpoints(self.folder):
            # An older one that is damaged is nobody's business until it is wanted.
            with suppress(UserError):
                descriptions[path] = describe(path)
        before = [one["tokens"] for one in descriptions.values() if one["step"] < pending.description["step"]]
        description = {
            **pending.description,
            "milestone": self._keep.is_milestone(pending.description["tokens"], before[-1] if before else 0),
            "seconds": {"training_waited": pending.seconds_waited, "writing": max(part.seconds for part in written)},
            "files": {f"{_TAG}/{name}": digest for part in written for name, digest in part.files.items()},
        }
        (partial / _DESCRIPTION).write_text(sealed(description), encoding="utf-8")
        _publish(partial, complete)
        descriptions[complete] = description
        paths = sorted(descriptions)
        for place in self._keep.superseded([descriptions[path] for path in paths]):
            # Half removed it must not look complete.
            paths[place].rename(_partial(paths[place]))
            self._thread.submit(shutil.rmtree, _partial(paths[place]), ignore_errors=True)

    def _raise_if_no_room(self, partial: Path) -> None:
        num_bytes = sum(gather_objects(self._copies.num_bytes))
        try:
            run_on_rank_0(lambda: raise_if_no_room(partial, num_bytes))
        except AgreedError:
            self._copies.take()
            if self._rank == 0:
                shutil.rmtree(partial)
            raise

    def prepare_newest(self) -> bool:
        """Convert the newest checkpoint if its files are for other ranks than these, all ranks together.

        Returns:
            Whether the engine has to load DeepSpeed's universal form, which must be known when it is built.

        Raises:
            AgreedError: if no checkpoint is whole, or if the newest whole one was saved under a ZeRO stage that this
                one cannot continue, or cannot be converted.
        """
        newest = self._newest = self._newest_whole()
        if newest is None:
            return False
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
        run_on_rank_0(lambda: self._convert(newest, change))
        return True

    def _newest_whole(self) -> Path | None:
        """The newest checkpoint that is what was written; newer ones are set aside. None if there are none at all."""
        damaged: list[tuple[Path, str]] = []
        for checkpoint in reversed(gather_objects(complete_checkpoints(self.folder))[0]):
            found = [problem for problem in gather_objects(self._damage(checkpoint)) if problem is not None]
            if not found:
                self._set_aside(damaged, checkpoint)
                return checkpoint
            damaged.append((checkpoint, found[0]))
        if damaged:
            raise AgreedError(
                f"{damaged[0][1]}, and no older checkpoint is whole; restore it from a copy, or remove {self.folder} "
                "to start the run anew"
            )
        return None

    def _damage(self, checkpoint: Path) -> str | None:
        """What is wrong with this rank's share of a checkpoint's files."""
        try:
            files = sorted(describe(checkpoint)["files"].items())
        except UserError as error:
            return str(error)
        return first_damage(checkpoint, dict(files[self._rank :: self._world_size]))

    def _set_aside(self, damaged: list[tuple[Path, str]], whole: Path) -> None:
        if self._rank == 0:
            for checkpoint, problem in damaged:
                aside = checkpoint.with_name(f"{_DAMAGED}{checkpoint.name}")
                shutil.rmtree(aside, ignore_errors=True)
                checkpoint.rename(aside)
                print(f"unibert: {problem}; set aside as {aside.name}", file=sys.stderr, flush=True)
            if damaged:
                print(f"unibert: continuing from {whole}", file=sys.stderr, flush=True)
        dist.barrier()

    def _convert(self, checkpoint: Path, change: str) -> None:
        complete, partial = checkpoint / _UNIVERSAL, checkpoint / f"{_PARTIAL}{_UNIVERSAL}"
        if complete.is_dir():
            if _is_whole(complete):
                return
            shutil.rmtree(complete)
        started = time.perf_counter()
        print(f"unibert: converting {checkpoint} {change}", file=sys.stderr, flush=True)
        try:
            universal.convert(checkpoint / _TAG, partial / _TAG)
            files = {str(path.relative_to(partial)): file_sha256(path) for path in partial.rglob("*") if path.is_file()}
            (partial / _DIGESTS).write_text(json.dumps(files), encoding="utf-8")
            _publish(partial, complete)
        except (UserError, OSError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"{checkpoint}: cannot be converted {change}: {error}; fix that, or start it as it was saved"
            ) from error
        print(f"unibert: converted in {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)

    def load_newest(self, engine: Any) -> dict[str, Any] | None:
        """Restore the newest checkpoint into ``engine``; its ``{"step", "state", …}``, or None if there is none.

        :meth:`prepare_newest` must have gone before.
        """
        newest = self._newest
        if newest is None:
            return None
        if engine.load_universal_checkpoint():
            loaded = universal.load(engine, newest / _UNIVERSAL, _TAG)
        else:
            loaded, _ = engine.load_checkpoint(str(newest), tag=_TAG)
        if loaded is None:
            raise AgreedError(f"{newest}: DeepSpeed could not read it; remove the folder to continue from an older one")
        return describe(newest)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); {_RESTART}") from error


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _DESCRIPTION).is_file())


def step_of(checkpoint: Path) -> int:
    """The optimizer steps after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("step-"))


def describe(checkpoint: Path) -> dict[str, Any]:
    """What was kept beside a checkpoint: step, layout, files with digests, and the stream's state.

    Raises:
        UserError: if that is no longer what was written.
    """
    path = checkpoint / _DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if sealed({key: value for key, value in description.items() if key != "sha256"}) != json.dumps(description):
            raise ValueError
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is damaged") from error
    return description


def sealed(description: dict[str, Any]) -> str:
    """The text of a checkpoint's description, with a digest of its own."""
    content = json.dumps(description)
    return json.dumps({**description, "sha256": hashlib.sha256(content.encode()).hexdigest()})


def first_damage(folder: Path, files: dict[str, str]) -> str | None:
    """A sentence on the first of ``files`` (SHA-256 by path within ``folder``) that is not what was written."""
    for name, digest in files.items():
        try:
            if file_sha256(folder / name) != digest:
                return f"{folder / name}: is damaged, its content differs from the digest"
        except OSError as error:
            return f"{folder / name}: cannot be read ({error.strerror})"
    return None


def _is_whole(universal_form: Path) -> bool:
    try:
        files = json.loads((universal_form / _DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return first_damage(universal_form, files) is None


def full_state_dict(checkpoint: Path) -> dict[str, Any]:
    """The trained module's fp32 weights, put together from all ranks' files. Needs no GPU and no ranks.

    Raises:
        UserError: if the checkpoint is damaged.
    """
    description = describe(checkpoint)
    if damage := first_damage(checkpoint, description["files"]):
        raise UserError(f"{damage}; export another with --step")
    if description["zero_stage"] == 0:
        file = checkpoint / _TAG / "mp_rank_00_model_states.pt"
        state = torch.load(file, map_location="cpu", weights_only=False)["module"]
        return {name: tensor.float() for name, tensor in state.items()}
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # It reports its progress with print and a bar of its own.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=_TAG)


def _partial(complete: Path) -> Path:
    return complete.with_name(f"{_PARTIAL}{complete.name}")


def _publish(partial: Path, complete: Path) -> None:
    """Give a folder that is wholly written its final name."""
    for path in partial.rglob("*"):
        flush_to_disk(path)
    partial.rename(complete)
    flush_to_disk(complete.parent)
