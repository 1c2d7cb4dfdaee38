"""The parent of a branch: the run, and the checkpoint of it, from which another run goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unibert.configuration import parse
from unibert.errors import UserError
from unibert.schedules import PastSteps, Timeline
from unibert.stream.past import past_from_json
from unibert.stream.plan import PlanPast
from unibert.training.checkpoint.folder import complete_checkpoints, describe, step_of
from unibert.training.config import RunConfig
from unibert.training.parent_file import read_parent_file


@dataclass(frozen=True, kw_only=True)
class Branch:
    """What a branch takes over; its run folder keeps this in ``parent.json``."""

    parent: str
    """Absolute path of the parent's run folder."""
    step: int
    """Number of optimizer steps after which the branch begins."""
    tokens: int
    """Tokens of these steps."""
    checkpoint_sha256: str
    """Digest of the checkpoint's description, which holds those of its files."""
    steps: PastSteps
    stream: PlanPast
    new_stream_for: str | None
    """The key for whose other value the stream begins anew; None if it goes on where the parent stood."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, from which :meth:`read` makes the branch again."""
        return asdict(self)

    @classmethod
    def read(cls, run_dir: Path) -> Branch | None:
        """Read the branch that a run folder keeps, None if its run is none. Raise UserError if it is damaged."""
        content = read_parent_file(run_dir)
        return None if content is None else cls(**content | {"stream": past_from_json(content["stream"])})


@dataclass(frozen=True)
class Parent:
    """A run and one of its checkpoints."""

    run_dir: Path
    config: RunConfig
    checkpoint: Path

    @classmethod
    def find(cls, resume_from: str) -> Parent:
        """Find the checkpoint that ``resume_from`` names: ``RUN_DIR``, for the newest, or ``RUN_DIR@STEP``.

        Raises:
            UserError: if there is none.
        """
        folder, _, number = resume_from.rpartition("@")
        step = int(number) if folder and number.isdigit() else None
        run_dir = Path(resume_from if step is None else folder)
        if not (run_dir / "config.yaml").is_file():
            raise UserError(f"resume_from: {run_dir} is not a run folder (it has no config.yaml)")
        checkpoints = {step_of(path): path for path in complete_checkpoints(run_dir / "checkpoints")}
        if not checkpoints:
            raise UserError(f"resume_from: {run_dir} has no complete checkpoint")
        if step is not None and step not in checkpoints:
            steps = ", ".join(map(str, checkpoints))
            raise UserError(f"resume_from: {run_dir} has no checkpoint of step {step}; choose one of {steps}")
        config = parse(RunConfig, ["--config", str(run_dir / "config.yaml")])
        return cls(run_dir, config, checkpoints[max(checkpoints) if step is None else step])

    @cached_property
    def description(self) -> dict[str, Any]:
        """The checkpoint's description."""
        return describe(self.checkpoint)

    @cached_property
    def branch(self) -> Branch | None:
        """What the parent itself took over, if it is a branch."""
        return Branch.read(self.run_dir)

    @property
    def timeline(self) -> Timeline:
        """The parent's steps."""
        return self.config.training.timeline(() if self.branch is None else self.branch.steps)
