"""Ownership of a run folder: if a run is started twice, the later start writes and the earlier one ends."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

from unibert.errors import UserError
from unibert.files import write_atomically

_NAME = "start.json"


class Claim:
    """The claim of one start to its run folder, made by rank 0 alone.

    A node that Slurm considers dead may still train after the job has been started again elsewhere, and a user may
    start a run twice by mistake.

    Args:
        run_dir: run folder, which must exist.

    Raises:
        OSError: if the folder cannot be written.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / _NAME
        start = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time_ns()}
        self._content = json.dumps(start)
        write_atomically(self._path, self._content)

    def raise_if_superseded(self) -> None:
        """Check the claim. Call this before writing anything.

        Raises:
            UserError: if a later start has claimed the folder.
        """
        content = self._path.read_text(encoding="utf-8")
        if content != self._content:
            later = json.loads(content)
            raise UserError(
                f"{self._path.parent}: process {later['pid']} on {later['host']} has started this run again and "
                "continues it; this process ends and writes nothing more"
            )
