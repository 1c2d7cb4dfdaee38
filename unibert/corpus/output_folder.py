"""The folder of a corpus while it is built: who may build in it, and what becomes of what is there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from unibert.corpus.dataset_card import DESCRIPTIONS
from unibert.corpus.manifest import MANIFEST_NAME, Split
from unibert.errors import UserError, short_message
from unibert.files import locked

SPOOL_NAME = ".spool"
"""Subfolder for what a build needs until the corpus is complete; with it, a folder holds an interrupted build."""
_ENDED_NAME = ".spool-ended"


@contextmanager
def open_output(output: Path, overwrite: bool) -> Iterator[Path]:
    """Keep the folder for one build; yield its subfolder ``.spool``, which is removed if the block ends well.

    An older corpus loses its manifest first, so that an incomplete corpus never looks complete. An interrupted build
    keeps its shards and its ``.spool``.

    Raises:
        UserError: if the folder is in use or cannot be written.
    """
    spool = output / SPOOL_NAME
    _raise_if_in_use(output, overwrite)
    try:
        spool.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: {output} cannot be written ({short_message(error)}); name another folder") from error
    busy = f"output: another process builds in {output}; wait for it, or name another folder"
    with locked(spool / "lock", busy):
        is_replaced = (output / MANIFEST_NAME).exists()
        for name in (MANIFEST_NAME, *DESCRIPTIONS):
            (output / name).unlink(missing_ok=True)
        for partial in output.glob(".*.partial"):
            partial.unlink()
        if is_replaced:
            for shard in shard_files(output):
                shard.unlink()
            remove_empty_folders(output)
        yield spool
        spool.rename(output / _ENDED_NAME)
    # After the lock, since some network file systems remove no folder with an open file. What is left, the next start
    # removes.
    shutil.rmtree(output / _ENDED_NAME, ignore_errors=True)


def shard_files(output: Path) -> list[Path]:
    """Return the complete and incomplete shards in the folder."""
    return [shard for split in get_args(Split) for shard in output.glob(f"*/{split}-??????.tar*")]


def remove_empty_folders(output: Path) -> None:
    """Remove the folders of languages of which no shard is left."""
    for folder in output.iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _raise_if_in_use(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"output: {output} is a file; name a folder")
    shutil.rmtree(output / _ENDED_NAME, ignore_errors=True)
    if (output / SPOOL_NAME).exists():
        return
    if (output / MANIFEST_NAME).exists():
        if not overwrite:
            raise UserError(f"output: {output} already holds a corpus; name another folder or give --overwrite")
    elif any(output.iterdir()):
        raise UserError(f"output: {output} is not empty and holds no corpus; name another folder")
