"""Where else a run's metrics go: TensorBoard, CSV files and Weights & Biases, as one curve over all starts of a run."""

from __future__ import annotations

import csv
import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from unibert.configuration import to_dict
from unibert.errors import UserError, short_message
from unibert.files import write_atomically, write_json
from unibert.training.config import RunConfig

FOLDER = "monitor"
"""Folder, within the run's, of what the monitors write."""

_PREFIX = "unibert"


class Monitor(Protocol):
    """Receives the numbers of each line of metrics.jsonl."""

    def write(self, step: int, tokens: int, numbers: Mapping[str, float]) -> None:
        """Take in the numbers measured after ``step`` steps and ``tokens`` tokens."""

    def close(self) -> None:
        """Write what is pending."""


def start_monitors(config: RunConfig, step: int, tokens: int) -> dict[str, Monitor]:
    """Start the monitors that the run file asks for, by name, for a start that continues after ``step`` steps.

    What an earlier start has written of later steps, which the run repeats, is replaced.

    Raises:
        UserError: if one cannot be started.
    """
    started: dict[str, Monitor] = {}
    for name in config.training.monitors:
        try:
            started[name] = _start(name, config, step, tokens)
        except ImportError as error:
            raise UserError(
                f"training.monitors: {name} needs a package ({error}); install unibert[{name}], or leave {name} out"
            ) from error
        except OSError as error:
            raise UserError(f"training.monitors: {name} cannot write ({error})") from error
    return started


def _start(name: Literal["tensorboard", "csv", "wandb"], config: RunConfig, step: int, tokens: int) -> Monitor:
    folder = Path(config.run_dir) / FOLDER
    folder.mkdir(exist_ok=True)
    if name == "tensorboard":
        return TensorBoard(folder / name, step, tokens)
    return CSVFiles(folder / name, step) if name == "csv" else WeightsAndBiases(folder, config)


class TensorBoard:
    """Event files of two curves for each metric, over steps in the folder ``steps`` and over tokens in ``tokens``."""

    def __init__(self, folder: Path, step: int, tokens: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops the points from here on, which an earlier start has written. The retrieval of a run without
        # a checkpoint is measured at step 0.
        purged = {"steps": step + 1 if step else 0, "tokens": tokens + 1 if step else 0}
        self._writers = {axis: SummaryWriter(str(folder / axis), purge_step=first) for axis, first in purged.items()}

    def write(self, step: int, tokens: int, numbers: Mapping[str, float]) -> None:
        for axis, place in (("steps", step), ("tokens", tokens)):
            for key, value in numbers.items():
                self._writers[axis].add_scalar(f"{_PREFIX}/{key}", value, place)
            # A run that is killed repeats the steps after its last checkpoint, but not those before it.
            self._writers[axis].flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class CSVFiles:
    """A file for each metric, with the columns ``step``, ``tokens`` and ``value``."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        for path in folder.glob("*.csv"):
            header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            # A line that a kill has cut short does not end.
            kept = [line for line in lines if line.endswith("\n") and int(line.partition(",")[0]) <= (step or -1)]
            write_atomically(path, "".join([header, *kept]))

    def write(self, step: int, tokens: int, numbers: Mapping[str, float]) -> None:
        for key, value in numbers.items():
            path = self._folder / f"{key}.csv"
            is_new = not path.exists()
            with path.open("a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows([*([("step", "tokens", "value")] if is_new else []), (step, tokens, value)])

    def close(self) -> None:
        pass


class WeightsAndBiases:
    """One run of W&B for all starts. The file ``wandb.json`` keeps its id and the last step that it was given."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        import wandb

        options = config.wandb
        self._file = folder / "wandb.json"
        if not self._file.is_file():
            write_json(self._file, {"id": secrets.token_hex(8), "step": -1})
        kept = json.loads(self._file.read_text(encoding="utf-8"))
        self._id = kept["id"]
        # W&B cannot take back a step; a run that repeats steps gives the same numbers.
        self._first_step = kept["step"] + 1
        try:
            self._run = wandb.init(
                id=self._id,
                resume="allow",
                dir=str(folder),
                project=options.project,
                entity=options.entity,
                name=options.name or Path(config.run_dir).resolve().name,
                group=options.group,
                tags=options.tags,
                mode=options.mode,
                config=to_dict(config),
                # A branch or a continuation with changed values is the same run with another configuration.
                allow_val_change=True,
            )
        except Exception as error:  # wandb passes on whatever its parts raise
            raise UserError(
                f"training.monitors: W&B does not start ({short_message(error)}); log in with `wandb login`, set "
                "WANDB_API_KEY, or choose wandb.mode offline"
            ) from error
        self._run.define_metric("*", step_metric="tokens")

    def write(self, step: int, tokens: int, numbers: Mapping[str, float]) -> None:
        if step >= self._first_step:
            self._run.log({**numbers, "tokens": tokens}, step=step)
            write_json(self._file, {"id": self._id, "step": step})

    def close(self) -> None:
        # An error or a signal is on its way up: W&B calls such a run failed, until it is continued.
        self._run.finish(exit_code=int(sys.exc_info()[0] is not None))


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics.jsonl that are curves."""
    if "rolled_back" in line:
        return {}
    kept = {key: value for key, value in line.items() if isinstance(value, int | float)}
    return {key: value for key, value in kept.items() if key not in ("step", "tokens", "batch_checksum")}
