"""``unibert doctor``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from unibert.doctor.cluster import check_slurm
from unibert.doctor.devices import check_devices
from unibert.doctor.finding import Finding, fail
from unibert.doctor.folders import check_folders, check_sharing
from unibert.doctor.packages import check_packages
from unibert.doctor.ranks import check_launcher, check_mpi

if TYPE_CHECKING:
    from unibert.training.config import RunConfig


def examine(read_run: Callable[[], RunConfig] | None) -> bool:
    """Print one line for everything that was looked at, as it is found, and how to fix what is not well.

    Args:
        read_run: gives the run file, if what it names is to be looked at too; called when the packages that it wants
            have been.

    Returns:
        Whether nothing is marked FAIL.
    """
    marks: Counter[str] = Counter()

    def tell(findings: Iterable[Finding]) -> None:
        for finding in findings:
            marks[finding.mark] += 1
            print(f"{finding.mark:<5} {finding.subject:<16} {finding.found}", flush=True)
            if finding.fix:
                print(f"{'':<22} {finding.fix}", flush=True)

    tell(check_packages())
    config = None
    if read_run is not None:
        try:
            config = read_run()
        except ImportError as error:
            tell([fail("run file", f"not looked at: {error}", "fix the packages first")])
    tell(check_devices())
    tell(check_launcher())
    tell(check_mpi())
    slurm, nodes = check_slurm()
    tell(slurm)
    tell(check_folders(None if config is None else Path(config.run_dir)))
    folders = {"working folder": Path.cwd(), "Python": Path(sys.prefix)}
    if config is not None:
        from unibert.doctor.run_files import check_run, folders_of_run

        tell(check_run(config))
        folders |= folders_of_run(config)
    tell(check_sharing(folders, nodes))
    print(f"{marks['ok']} ok, {marks['warn']} warn, {marks['FAIL']} FAIL", flush=True)
    return not marks["FAIL"]
