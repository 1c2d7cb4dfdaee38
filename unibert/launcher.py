"""Starting ranks on this machine with the deepspeed launcher."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence


def launcher_command(module: str, words: Sequence[str] = (), *, ranks: int) -> list[str]:
    """The command that runs ``python -m module words`` as ``ranks`` ranks, which meet on a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port", port]
    return [*launcher, "--module", module, *words]
