"""Start of ranks on this machine with the deepspeed launcher."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence


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
