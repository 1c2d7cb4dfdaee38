"""The process of the command line, which the deepspeed launcher starts as ``python -m unibert``."""

import atexit
import os
import sys

from unibert.cli import main

_JOIN_RANKS = {"unibert.training.ranks.collectives", "unibert.training.preflight"}


def program() -> None:
    """:func:`unibert.cli.main`, and an end that keeps its exit status.

    The threads of a gloo process group live on after ``destroy_process_group`` as long as anything, DeepSpeed's globals
    for one, refers to the group. One that lets go of its last tensor while the interpreter goes down aborts the process
    with "terminate called without an active exception" (pytorch/pytorch#179291), and a run that is complete would count
    as failed. So a process that had to do with ranks ends after its exit handlers, of which this one is the last.
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
