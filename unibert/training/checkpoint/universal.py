"""Checkpoints for another number of ranks: DeepSpeed's universal form, its conversion and its loading."""

from __future__ import annotations

import io
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from logging import LogRecord
from pathlib import Path
from typing import Any

from unibert.errors import UserError

SPACE_FACTOR = 3.5
"""Most that a conversion holds on disk, in sizes of the checkpoint: every state in pieces and whole, and under ZeRO 3
rank 0's share of it once more."""


def convert(source: Path, destination: Path) -> None:
    """Write the universal form of the ZeRO 1, 2 or 3 checkpoint in ``source`` into the new folder ``destination``.

    Raises:
        UserError: if the disk has no room for it, or DeepSpeed fails.
    """
    from deepspeed.checkpoint import ds_to_universal

    gib = 2**30
    needed = SPACE_FACTOR * sum(path.stat().st_size for path in source.iterdir())
    free = shutil.disk_usage(source).free
    if free < needed:
        raise UserError(f"the conversion needs {needed / gib:.2f} GiB of free space, and there are {free / gib:.2f}")
    options = Namespace(
        input_folder=str(source),
        output_folder=str(destination),
        # One worker means this process: forking one that trains, with its threads and its GPU, is not safe.
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    destination.mkdir(parents=True)
    try:
        # It reports its progress with print and a bar of its own.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            ds_to_universal.main(options)
    except Exception as error:
        # A damaged file fails as nearly anything; of a full disk torch.save says only that a stream failed.
        raise UserError(
            f"DeepSpeed failed ({type(error).__name__}: {error}), as it does with a full disk or a damaged file"
        ) from error


def load(engine: Any, folder: Path, tag: str) -> str | None:
    """Restore the universal checkpoint ``folder/tag`` into an engine that was built for it; None if that failed."""
    from deepspeed.utils import logger

    logger.addFilter(_is_of_interest)
    optimizer = engine.basic_optimizer
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    if engine.zero_optimization_stage() == 3:
        loaded, _ = engine.load_checkpoint(str(folder), tag=tag)
        # DeepSpeed gives all groups one and the same step counter, which each of them would then raise.
        for state in optimizer.state.values():
            state["step"] = state["step"].clone()
    else:
        with _groups_with_a_part_here(engine.optimizer):
            loaded, _ = engine.load_checkpoint(str(folder), tag=tag)
    # DeepSpeed gives all groups the first one's weight decay and peak under ZeRO 3; the run file's are the right ones.
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    return loaded


def _is_of_interest(record: LogRecord) -> bool:
    # What every rank would say: that there is no tensor parallelism.
    return not record.getMessage().startswith("MPU is not provided")


@contextmanager
def _groups_with_a_part_here(optimizer: Any) -> Iterator[None]:
    """Hide parameter groups too small to have a part on this rank, over which DeepSpeed 0.19's loading stumbles."""
    groups, flat_groups = optimizer.bit16_groups, optimizer.optimizer.param_groups
    here = [index for index, group in enumerate(groups) if any(p._hp_mapping is not None for p in group)]
    optimizer.bit16_groups = [groups[index] for index in here]
    optimizer.optimizer.param_groups = [flat_groups[index] for index in here]
    try:
        yield
    finally:
        optimizer.bit16_groups, optimizer.optimizer.param_groups = groups, flat_groups
