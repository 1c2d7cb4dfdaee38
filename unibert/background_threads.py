"""Threads that work while another one trains."""

from __future__ import annotations

import torch


def compute_on_one_thread() -> None:
    """Let torch compute on the calling thread alone, for as long as it lives.

    On a CPU, torch would start further threads for it, as many as for the thread that trains. OpenMP then has more
    threads than cores, so that those that train no longer wait awake for the next operation but sleep: each operation
    wakes them, which took 3 % of a step on two cores of a virtual machine.
    """
    # Other threads keep their number; only threads that torch has not seen yet begin with this one.
    torch.set_num_threads(1)
