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
    """Run all checks; print a line for each finding, and how to fix what is wrong.

    Args:
        read_run: reads the run file whose corpus, models and folders are checked too. It is called after the check of
            the packages that it needs.

    Returns:
        Whether nothing is marked FAIL.
    """
    marks: Counter[str] = Counter()

    def report(findings: Iterable[Finding]) -> None:
        for finding in findings:
            marks[finding.mark] += 1
            print(f"{finding.mark:<5} {finding.subject:<16} {finding.message}", flush=True)
            if finding.fix:
                print(f"{'':<22} {finding.fix}", flush=True)

    report(check_packages())
    config = None
    if read_run is not None:
        try:
            config = read_run()
        except ImportError as error:
            report([fail("run file", f"not checked: {error}", "fix the packages first")])
    report(check_devices(None if config is None else config.stream.num_workers))
    report(check_launcher())
    report(check_mpi())
    slurm, nodes = check_slurm()
    report(slurm)
    report(check_folders(None if config is None else Path(config.run_dir)))
    folders = {"working folder": Path.cwd(), "Python": Path(sys.prefix)}
    if config is not None:
        from unibert.doctor.run_files import check_run, folders_of_run

        report(check_run(config))
        folders |= folders_of_run(config)
    report(check_sharing(folders, nodes))
    print(f"{marks['ok']} ok, {marks['warn']} warn, {marks['FAIL']} FAIL", flush=True)
    return not marks["FAIL"]
