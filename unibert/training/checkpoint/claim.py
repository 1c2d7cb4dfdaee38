"""Whose a run folder is: of two starts of one run, the later one writes and the earlier one ends."""

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
    """A start's claim to its run folder, made by rank 0 alone.

    A node that Slurm believes dead may still train while the job has long been started again elsewhere, and a run may
    be started twice by mistake.

    Args:
        run_dir: exists.

    Raises:
        OSError: where it cannot be written.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / _NAME
        start = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time_ns()}
        self._content = json.dumps(start)
        write_atomically(self._path, self._content)

    def raise_if_superseded(self) -> None:
        """To be called before anything is written.

        Raises:
            UserError: if another start has claimed the folder since.
        """
        content = self._path.read_text(encoding="utf-8")
        if content != self._content:
            later = json.loads(content)
            raise UserError(
                f"{self._path.parent}: process {later['pid']} on {later['host']} has started this run again and goes "
                "on with it; this one ends and writes nothing more"
            )
