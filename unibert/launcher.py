"""Start of ranks on this machine, with the deepspeed launcher or MPI."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

MPI_PERMISSIONS = {
    # Open MPI refuses root and more ranks than cores; versions 4 and 5 have different variables for the latter.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
"""Environment variables with which mpirun starts two ranks on any machine."""


def launcher_command(module: str, arguments: Sequence[str] = (), *, ranks: int) -> list[str]:
    """Return the command that runs ``python -m module arguments`` on ``ranks`` ranks, with a free port to connect."""
    ranks_and_port = ["--num_gpus", str(ranks), "--master_port", str(free_port())]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *ranks_and_port, "--module", module, *arguments]


def free_port() -> int:
    """Return a port of this machine on which no process listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def find_mpirun() -> str | None:
    """Return the path of mpirun, beside Python or on PATH, as slurm/corpus.sh searches it; None if there is none."""
    return shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
