"""Entry point of the command line, which the deepspeed launcher starts as ``python -m unibert``."""

import atexit
import os
import sys

from unibert.cli import main

_PROCESS_GROUP_MODULES = {"unibert.training.ranks.collectives", "unibert.training.preflight"}
"""Modules that create process groups."""


def program() -> None:
    """Run :func:`unibert.cli.main` and exit with its status.

    The threads of a gloo process group survive ``destroy_process_group`` while anything refers to the group, such as
    DeepSpeed's globals. A thread that releases its last tensor while the interpreter shuts down aborts the process with
    "terminate called without an active exception" (pytorch/pytorch#179291), and a complete run would count as failed.
    So a process that has joined ranks exits right after its exit handlers, of which this one is the last.
    """
    status = 1

    def exit_at_once() -> None:
        if _PROCESS_GROUP_MODULES & sys.modules.keys():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    atexit.register(exit_at_once)
    try:
        main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise


if __name__ == "__main__":
    program()
