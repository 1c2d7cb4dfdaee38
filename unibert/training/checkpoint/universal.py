"""DeepSpeed's universal form, which lets another number of ranks continue a checkpoint: conversion and loading."""

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
"""Maximum disk space of a conversion, as a multiple of the checkpoint's size: every state in pieces and whole, and
under ZeRO 3 rank 0's shard once more."""


def convert(source: Path, destination: Path) -> None:
    """Write the universal form of the ZeRO 1, 2 or 3 checkpoint in ``source`` into the new folder ``destination``.

    Raises:
        UserError: if the disk has no room, or DeepSpeed fails.
    """
    from deepspeed.checkpoint import ds_to_universal

    gib = 2**30
    needed = SPACE_FACTOR * sum(path.stat().st_size for path in source.iterdir())
    free = shutil.disk_usage(source).free
    if free < needed:
        raise UserError(f"the conversion needs {needed / gib:.2f} GiB of disk space, but {free / gib:.2f} are free")
    options = Namespace(
        input_folder=str(source),
        output_folder=str(destination),
        # One worker means this process. Forking a process that trains, with its threads and its GPU, is unsafe.
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    destination.mkdir(parents=True)
    try:
        # DeepSpeed prints its progress and shows a bar.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            ds_to_universal.main(options)
    except Exception as error:
        # A damaged file may raise any exception; if the disk is full, torch.save only reports that a stream failed.
        raise UserError(
            f"DeepSpeed failed ({type(error).__name__}: {error}); the disk may be full or a file damaged"
        ) from error


def load(engine: Any, folder: Path, tag: str) -> str | None:
    """Load the universal checkpoint ``folder/tag`` into an engine that was built for it. Return None on failure."""
    from deepspeed.utils import logger

    logger.addFilter(_is_of_interest)
    optimizer = engine.basic_optimizer
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    if engine.zero_optimization_stage() == 3:
        loaded, _ = engine.load_checkpoint(str(folder), tag=tag)
        # DeepSpeed gives all groups the same step-counter tensor, which each group would then increment.
        for state in optimizer.state.values():
            state["step"] = state["step"].clone()
    else:
        with _only_groups_on_this_rank(engine.optimizer):
            loaded, _ = engine.load_checkpoint(str(folder), tag=tag)
    # Under ZeRO 3 DeepSpeed gives all groups the weight decay and peak of the first; restore those of the run file.
    for group, configured in zip(optimizer.param_groups, settings, strict=True):
        group.update(configured)
    return loaded


def _is_of_interest(record: LogRecord) -> bool:
    # Every rank would log that there is no tensor parallelism.
    return not record.getMessage().startswith("MPU is not provided")


@contextmanager
def _only_groups_on_this_rank(optimizer: Any) -> Iterator[None]:
    """Hide parameter groups too small to have a part on this rank, on which DeepSpeed 0.19 fails when it loads."""
    groups, flat_groups = optimizer.bit16_groups, optimizer.optimizer.param_groups
    here = [index for index, group in enumerate(groups) if any(p._hp_mapping is not None for p in group)]
    optimizer.bit16_groups = [groups[index] for index in here]
    optimizer.optimizer.param_groups = [flat_groups[index] for index in here]
    try:
        yield
    finally:
        optimizer.bit16_groups, optimizer.optimizer.param_groups = groups, flat_groups
