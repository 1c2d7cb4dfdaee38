"""Entry point of the command line, which the deepspeed launcher starts as ``python -m unibert``."""

import atexit
import os
import sys

from unibert.cli import main

_JOIN_RANKS = {"unibert.training.ranks.collectives", "unibert.training.ranks.preflight"}


def program() -> None:
    """Run :func:`unibert.cli.main` and exit with its status.

    The threads of a gloo process group survive ``destroy_process_group`` while anything refers to the group, such as
    DeepSpeed's globals. A thread that releases its last tensor while the interpreter shuts down aborts the process with
    "terminate called without an active exception" (pytorch/pytorch#179291), and a complete run would count as failed.
    So a process that has joined ranks exits right after its exit handlers, of which this one is the last.
    """
    status = 1

    def end() -> None:
        if _JOIN_RANKS & sys.modules.keys():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    atexit.register(end)
    try:
        main()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        raise


if __name__ == "__main__":
    program()
