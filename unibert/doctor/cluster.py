"""Slurm, if it is here."""

from __future__ import annotations

import re
import shutil

from unibert.doctor.finding import Finding, ask, ok, warn

COMMANDS = ("sbatch", "srun", "scontrol", "sinfo")
SLURM_SECONDS = 10


def check_slurm() -> tuple[list[Finding], int]:
    """What is found, and how many nodes Slurm has; 0 where it is not here or says nothing."""
    here = [command for command in COMMANDS if shutil.which(command)]
    if not here:
        return [ok("Slurm", "none here")], 0
    if missing := [command for command in COMMANDS if command not in here]:
        return [warn("Slurm", f"no {', '.join(missing)} beside {', '.join(here)}", "install Slurm's client whole")], 0
    ping = ask(["scontrol", "ping"], SLURM_SECONDS)
    if ping.status != 0 or not re.search(r"\bis UP\b", ping.output):
        fix = "ask who runs the cluster; without Slurm, 'deepspeed --module unibert' starts ranks on one machine"
        return [warn("Slurm", f"its controller does not answer ('scontrol ping': {ping.reason})", fix)], 0
    version = ask(["sbatch", "--version"], SLURM_SECONDS).output.strip() or "slurm"
    nodes = set(ask(["sinfo", "--noheader", "--Node", "--format=%N"], SLURM_SECONDS).output.split())
    return [ok("Slurm", f"{version}, {len(nodes)} nodes, the controller answers")], len(nodes)
