"""Peak memory of one forward and backward pass, over what the inputs take.

On CUDA the allocator keeps count. On the CPU it is the growth of the process's peak resident set (``VmHWM``), which is
set back before the passes; that needs a fresh process for each provider, as memory once freed may stay with the
process and hide the next one's need.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from unibert.bench.losses.inputs import Inputs
from unibert.bench.process_memory import CLEAR_REFS, RESET_PEAK, status_bytes


def measured_peak(both_passes: Callable[[], object], inputs: Inputs) -> dict[str, int]:
    """Run ``both_passes`` once. ``peak_bytes`` counts all but inputs; ``workspace_bytes`` takes the gradients off too.

    Empty on a CPU where Linux's counters are missing. On a CPU ``workspace_bytes`` may come out a little below 0 if
    pages that the process had already serve again.
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
