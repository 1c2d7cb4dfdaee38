"""Checkpoints that are either complete or absent.

Every rank copies its part and writes the copy in the background into a hidden folder. When all ranks have finished,
rank 0 writes a description with the digests of all files and renames the folder, so a folder named ``step-…`` is always
complete. Digests are checked before a checkpoint is loaded. A checkpoint that was saved by another number of ranks is
converted first, into a folder within it that is written in the same way.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from unibert.background_threads import compute_on_one_thread
from unibert.errors import AgreedError, UserError
from unibert.files import file_sha256
from unibert.training.checkpoint import universal
from unibert.training.checkpoint.claim import Claim
from unibert.training.checkpoint.files import Copies, Written, write
from unibert.training.checkpoint.folder import (
    DESCRIPTION,
    PARTIAL,
    TAG,
    complete_checkpoints,
    describe,
    first_damage,
    partial_of,
    publish,
    sealed,
    step_of,
)
from unibert.training.checkpoint.retention import RetentionPolicy, raise_if_no_room
from unibert.training.ranks.collectives import agree, gather_objects, run_on_rank_0, wait_together

_UNIVERSAL = "universal"
_DAMAGED = "damaged-"
_DIGESTS = "digests.json"
_HOW_TO_CONTINUE = "the newest complete checkpoint is kept; make room and the same command continues from it"


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    complete: Path
    description: dict[str, Any]
    writing: Future[Written]
    seconds_waited: float
    """How long training stalled for the copy."""


class Checkpoints:
    """The checkpoints of one run. All ranks must call every method together.

    Args:
        folder: ``run_dir/checkpoints``.
        keep: policy that decides which checkpoints are kept.
        claim: rank 0's claim to the run folder; None on other ranks.
        rank: rank of this process. Only rank 0 renames and removes folders.
        world_size: number of ranks of this start, recorded in each checkpoint.
        zero_stage: ZeRO stage of this start, recorded in each checkpoint.
        ema_half_life: half-life of this start's average of the weights, recorded in each checkpoint.
        optimizer: name of the run's optimizer.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: RetentionPolicy,
        claim: Claim | None,
        rank: int,
        world_size: int,
        zero_stage: int,
        ema_half_life: int | None,
        optimizer: str,
    ) -> None:
        self.folder = folder
        self._keep = keep
        self._claim = claim
        self._rank = rank
        self._world_size = world_size
        self._zero_stage = zero_stage
        self._ema_half_life = ema_half_life
        self._optimizer = optimizer
        self._newest: Path | None = None
        self._copies = Copies()
        self._thread = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="unibert-checkpoints", initializer=compute_on_one_thread
        )
        self._pending: _Pending | None = None
        self._reservation: Future[None] | None = None
        run_on_rank_0(self._remove_leftovers)

    # ---- writing -------------------------------------------------------------------------------------------------

    def reserve_memory(self, num_bytes: int, *, pinned: bool) -> None:
        """Allocate, in the background, the memory for the first copy of this rank's part; page-locked for a GPU."""
        self._reservation = self._thread.submit(self._copies.reserve, num_bytes, pinned=pinned)

    def begin(self, engine: Any, step: int, state: dict[str, Any], *, tokens: int, scores: Mapping[str, float]) -> None:
        """Copy the state of the run after ``step`` steps. The copy is written while training continues.

        Args:
            engine: the DeepSpeed engine.
            step: number of optimizer steps done.
            state: JSON object to store; only that of rank 0 is stored.
            tokens: number of tokens consumed so far.
            scores: figures measured after this step, by which `RetentionPolicy.best` judges.

        Raises:
            AgreedError: if the disk has no room, the previous checkpoint could not be written, or a later start has
                claimed the run.
        """
        started = time.perf_counter()
        self.finish()
        if self._reservation is not None:
            self._reservation.result()
        complete = self.folder / f"step-{step:08d}"
        partial = partial_of(complete)
        run_on_rank_0(lambda: self._create(partial))
        # The files have DeepSpeed's own format and are read by its own functions; only the writer differs.
        engine.checkpoint_engine.save = self._copies.copy
        engine.save_checkpoint(str(partial), tag=TAG, save_latest=False)
        self._raise_if_no_room(partial)
        description = {
            "step": step,
            "tokens": tokens,
            **scores,
            "world_size": self._world_size,
            "zero_stage": self._zero_stage,
            "ema_half_life": self._ema_half_life,
            "state": state,
        }
        writing = self._thread.submit(write, self._copies.take())
        self._pending = _Pending(complete, description, writing, time.perf_counter() - started)

    @property
    def written(self) -> bool:
        """Whether this rank has finished writing its part of the pending checkpoint, successfully or not."""
        return self._pending is not None and self._pending.writing.done()

    def publish(self) -> None:
        """Name the checkpoint that all ranks have written, and remove those that the policy no longer keeps.

        Raises:
            AgreedError: if a rank could not write its part, or a later start has claimed the run. The newest complete
                checkpoint is kept.
        """
        assert self._pending is not None
        pending, self._pending = self._pending, None
        partial = partial_of(pending.complete)
        part: Written | None = None
        mistake = None
        try:
            part = pending.writing.result()
        except (OSError, RuntimeError) as error:
            # If the disk is full, torch.save only reports that a stream failed.
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            mistake = UserError(
                f"{partial}: cannot be written ({reason}); the disk may be full or a quota reached; {_HOW_TO_CONTINUE}"
            )
        # A later start removes what this one is writing, and is then the cause to report.
        run_on_rank_0(self._raise_if_superseded)
        try:
            agree(mistake)
        except AgreedError:
            if self._rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        parts = [part for part in gather_objects(part) if part is not None]

        def name() -> None:
            with _writing(partial):
                self._name(pending, parts)

        run_on_rank_0(name)

    def finish(self) -> None:
        """Wait until the pending checkpoint, if any, is complete, however long that takes."""
        if self._pending is not None:
            wait_together(self._pending.writing)
            self.publish()

    def _remove_leftovers(self) -> None:
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in [*self.folder.glob(f"{PARTIAL}*"), *self.folder.glob(f"step-*/{PARTIAL}*")]:
                # An earlier start may still be writing into it.
                shutil.rmtree(leftover.rename(f"{leftover}-{time.time_ns()}"), ignore_errors=True)

    def _create(self, partial: Path) -> None:
        self._raise_if_superseded()
        with _writing(partial):
            (partial / TAG).mkdir(parents=True, exist_ok=True)

    def _raise_if_superseded(self) -> None:
        if self._claim is not None:
            with _writing(self.folder):
                self._claim.raise_if_superseded()

    def _name(self, pending: _Pending, parts: list[Written]) -> None:
        complete, partial = pending.complete, partial_of(pending.complete)
        descriptions = {}
        for path in complete_checkpoints(self.folder):
            # Damage of an older checkpoint matters only when it is loaded.
            with suppress(UserError):
                descriptions[path] = describe(path)
        before = [one["tokens"] for one in descriptions.values() if one["step"] < pending.description["step"]]
        description = {
            **pending.description,
            "milestone": self._keep.is_milestone(pending.description["tokens"], before[-1] if before else 0),
            "seconds": {"training_waited": pending.seconds_waited, "writing": max(part.seconds for part in parts)},
            "files": {f"{TAG}/{name}": digest for part in parts for name, digest in part.files.items()},
        }
        (partial / DESCRIPTION).write_text(sealed(description), encoding="utf-8")
        publish(partial, complete)
        descriptions[complete] = description
        paths = sorted(descriptions)
        for index in self._keep.superseded([descriptions[path] for path in paths]):
            # A checkpoint that is half removed must not look complete.
            paths[index].rename(partial_of(paths[index]))
            self._thread.submit(shutil.rmtree, partial_of(paths[index]), ignore_errors=True)

    def _raise_if_no_room(self, partial: Path) -> None:
        num_bytes = sum(gather_objects(self._copies.num_bytes))
        try:
            run_on_rank_0(lambda: raise_if_no_room(partial, num_bytes))
        except AgreedError:
            self._copies.take()
            if self._rank == 0:
                shutil.rmtree(partial)
            raise

    def go_back(self, step: int, every: int) -> int | None:
        """Go back to the newest checkpoint up to ``step``: remove later ones, so that the next start continues from it.

        No checkpoint may be pending. Those of the steps that are a multiple of ``every`` are preferred: an undisturbed
        run has them too, and not those that a signal has asked for.

        Returns:
            The step of that checkpoint, or None if there is none and all are kept.
        """

        def remove() -> int | None:
            checkpoints = {step_of(path): path for path in complete_checkpoints(self.folder)}
            early = [number for number in checkpoints if number <= step]
            if not early:
                return None
            back_to = max([number for number in early if number % every == 0] or early)
            self._raise_if_superseded()
            with _writing(self.folder):
                # Newest first: what is left if this is interrupted has no gap.
                for number in sorted((number for number in checkpoints if number > back_to), reverse=True):
                    checkpoints[number].rename(partial_of(checkpoints[number]))
                    shutil.rmtree(partial_of(checkpoints[number]), ignore_errors=True)
            return back_to

        return gather_objects(run_on_rank_0(remove))[0]

    # ---- loading -------------------------------------------------------------------------------------------------

    def prepare_newest(self) -> bool:
        """Find the newest intact checkpoint, and convert it if it was saved by another number of ranks.

        Returns:
            Whether the engine must load DeepSpeed's universal form, which it must know when it is built.

        Raises:
            AgreedError: if no checkpoint is intact, or if the newest intact one cannot be converted or was saved under
                a ZeRO stage that this start cannot continue.
        """
        newest = self._newest = self._newest_intact()
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
            # Under ZeRO 0 every rank holds the whole state.
            return False
        # DeepSpeed's universal form has AdamW's moments only.
        if self._optimizer != "adamw":
            raise AgreedError(
                f"{newest}: the state of optimizer.name {self._optimizer} cannot be continued by another world size or "
                f"ZeRO stage; start it with world size {ranks} and stage {stage}"
            )
        if self._ema_half_life is not None and description.get("ema_half_life") is not None:
            raise AgreedError(
                f"{newest}: its average of weights cannot be continued by another world size or ZeRO stage; start it "
                f"with world size {ranks} and stage {stage}, or drop the average with --training.ema_half_life null"
            )
        change = f"from world size {ranks}, ZeRO {stage} to world size {self._world_size}, ZeRO {self._zero_stage}"
        run_on_rank_0(lambda: self._convert(newest, change))
        return True

    def _newest_intact(self) -> Path | None:
        """The newest checkpoint whose files match their digests, or None if there are no checkpoints.

        Newer, damaged ones are renamed.
        """
        damaged: list[tuple[Path, str]] = []
        for checkpoint in reversed(gather_objects(complete_checkpoints(self.folder))[0]):
            problems = [problem for problem in gather_objects(self._damage(checkpoint)) if problem is not None]
            if not problems:
                self._set_aside(damaged, checkpoint)
                return checkpoint
            damaged.append((checkpoint, problems[0]))
        if damaged:
            raise AgreedError(
                f"{damaged[0][1]}, and no older checkpoint is intact; restore it from a copy, or remove {self.folder} "
                "to start the run anew"
            )
        return None

    def _damage(self, checkpoint: Path) -> str | None:
        """The first problem in this rank's share of a checkpoint's files."""
        try:
            files = sorted(describe(checkpoint)["files"].items())
        except UserError as error:
            return str(error)
        return first_damage(checkpoint, dict(files[self._rank :: self._world_size]))

    def _set_aside(self, damaged: list[tuple[Path, str]], intact: Path) -> None:
        if self._rank == 0:
            for checkpoint, problem in damaged:
                renamed = checkpoint.with_name(f"{_DAMAGED}{checkpoint.name}")
                shutil.rmtree(renamed, ignore_errors=True)
                checkpoint.rename(renamed)
                print(f"unibert: {problem}; renamed to {renamed.name}", file=sys.stderr, flush=True)
            if damaged:
                print(f"unibert: continuing from {intact}", file=sys.stderr, flush=True)
        dist.barrier()

    def _convert(self, checkpoint: Path, change: str) -> None:
        complete, partial = checkpoint / _UNIVERSAL, checkpoint / f"{PARTIAL}{_UNIVERSAL}"
        if complete.is_dir():
            if _is_intact(complete):
                return
            shutil.rmtree(complete)
        started = time.perf_counter()
        print(f"unibert: converting {checkpoint} {change}", file=sys.stderr, flush=True)
        try:
            universal.convert(checkpoint / TAG, partial / TAG)
            files = {str(path.relative_to(partial)): file_sha256(path) for path in partial.rglob("*") if path.is_file()}
            (partial / _DIGESTS).write_text(json.dumps(files), encoding="utf-8")
            publish(partial, complete)
        except (UserError, OSError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"{checkpoint}: cannot be converted {change}: {error}; fix that, or start the run as it was saved"
            ) from error
        print(f"unibert: converted in {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)

    def load_newest(self, engine: Any) -> dict[str, Any] | None:
        """Load the checkpoint that :meth:`prepare_newest` has found into ``engine``.

        Returns:
            The checkpoint's description, ``{"step", "state", …}``, or None if there is no checkpoint.
        """
        newest = self._newest
        if newest is None:
            return None
        if engine.load_universal_checkpoint():
            loaded = universal.load(engine, newest / _UNIVERSAL, TAG)
        else:
            loaded, _ = engine.load_checkpoint(str(newest), tag=TAG)
        if loaded is None:
            raise AgreedError(f"{newest}: DeepSpeed could not read it; remove the folder to continue from an older one")
        return describe(newest)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); {_HOW_TO_CONTINUE}") from error


def _is_intact(universal_form: Path) -> bool:
    try:
        files = json.loads((universal_form / _DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return first_damage(universal_form, files) is None
