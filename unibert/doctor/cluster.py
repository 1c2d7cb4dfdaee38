"""Check Slurm, if it is installed."""

from __future__ import annotations

import re
import shutil

from unibert.doctor.finding import Finding, ok, run_command, warn

COMMANDS = ("sbatch", "srun", "scontrol", "sinfo")
SLURM_SECONDS = 10


def check_slurm() -> tuple[list[Finding], int]:
    """Return the findings and the number of Slurm's nodes, 0 if Slurm is not installed or does not answer."""
    installed = [command for command in COMMANDS if shutil.which(command)]
    if not installed:
        return [ok("Slurm", "not installed")], 0
    if missing := [command for command in COMMANDS if command not in installed]:
        message = f"{', '.join(installed)} without {', '.join(missing)}"
        return [warn("Slurm", message, "install all of Slurm's client commands")], 0
    ping = run_command(["scontrol", "ping"], SLURM_SECONDS)
    if ping.status != 0 or not re.search(r"\bis UP\b", ping.output):
        fix = "ask the administrators; without Slurm, 'deepspeed --module unibert' starts ranks on one machine"
        return [warn("Slurm", f"the controller does not answer ('scontrol ping': {ping.reason})", fix)], 0
    version = run_command(["sbatch", "--version"], SLURM_SECONDS).output.strip() or "slurm"
    nodes = set(run_command(["sinfo", "--noheader", "--Node", "--format=%N"], SLURM_SECONDS).output.split())
    return [ok("Slurm", f"{version}, {len(nodes)} nodes, the controller answers")], len(nodes)
