"""Peak memory of one forward and backward pass, without the inputs.

On CUDA the allocator counts it. On the CPU it is the growth of the process's peak resident set (``VmHWM``), which is
reset before the passes. That needs a new process for each provider, since freed memory may stay with the process and
hide what the next provider needs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from unibert.bench.losses.inputs import Inputs
from unibert.bench.process_memory import CLEAR_REFS, RESET_PEAK, status_bytes


def measured_peak(both_passes: Callable[[], object], inputs: Inputs) -> dict[str, int]:
    """Run ``both_passes`` once. ``peak_bytes`` counts all memory but the inputs, ``workspace_bytes`` not the gradients.

    Empty on a CPU without Linux's counters. On a CPU ``workspace_bytes`` may be slightly below 0 if the passes reuse
    pages of the process.
    """
    for leaf in inputs.leaves.values():
        leaf.grad = None
    if inputs.hidden.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both_passes()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    elif CLEAR_REFS.exists():
        CLEAR_REFS.write_text(RESET_PEAK)
        before = status_bytes("VmRSS")
        both_passes()
        peak = status_bytes("VmHWM") - before
    else:
        return {}
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in inputs.leaves.values())
    return {"peak_bytes": peak, "workspace_bytes": peak - gradients}
