"""Whole builds of a corpus with one and two ranks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unibert.bench.availability import NotAvailableError
from unibert.bench.corpus.measure import measure_command
from unibert.files import file_sha256
from unibert.launcher import MPI_PERMISSIONS, find_mpirun

Row = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """One way to start a build."""

    name: str
    ranks: int
    is_mpi: bool = False


STARTS = (Start("1 process", 1), Start("2 processes", 2), Start("mpirun -n 2", 2, is_mpi=True))


def measure_build(start: Start, inputs: Sequence[str], tokenizer: Path, output: Path) -> Row:
    """Build a corpus with a given tokenizer.

    Returns:
        figures of `measure_command`, whose peak is that of the largest rank, and "fingerprint", which is equal for
        equal corpora.

    Raises:
        NotAvailableError: if the build needs MPI and there is none.
        RuntimeError: if the build fails.
    """
    words = ["corpus", "build", *inputs, "--output", str(output), "--tokenizer", str(tokenizer)]
    command = [sys.executable, "-m", "unibert", *words, "--skip_empty_languages", "true"]
    variables: dict[str, str] = {}
    if start.is_mpi:
        mpirun = find_mpirun()
        if mpirun is None or find_spec("mpi4py") is None:
            raise NotAvailableError("mpirun or mpi4py is not installed")
        command, variables = [mpirun, "-n", str(start.ranks), *command], MPI_PERMISSIONS
    else:
        command += ["--workers", str(start.ranks)]
    with (output.parent / f"{output.name}.log").open("wb") as log:
        row = measure_command(command, log, **variables)
    return row | {"fingerprint": file_sha256(output / "manifest.json")}
