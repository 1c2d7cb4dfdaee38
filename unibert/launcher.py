"""Starting ranks on this machine with the deepspeed launcher, and where they meet."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence


def launcher_command(module: str, words: Sequence[str] = (), *, ranks: int) -> list[str]:
    """The command that runs ``python -m module words`` as ``ranks`` ranks, which meet on a port that is free now."""
    ranks_and_port = ["--num_gpus", str(ranks), "--master_port", str(free_port())]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *ranks_and_port, "--module", module, *words]


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
