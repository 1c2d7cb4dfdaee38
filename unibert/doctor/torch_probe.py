"""Query torch in a process of its own, because a broken driver may hang or kill the process.

Prints one line of JSON about torch and its GPUs and, with a GPU, another after running a Triton kernel.
"""

from __future__ import annotations

import json

import torch

from unibert.machine import held_gpus


def main() -> None:
    """Print the lines that this module's docstring describes."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    devices = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB, {gpu.major}.{gpu.minor})" for gpu in gpus],
        "capability": min(([gpu.major, gpu.minor] for gpu in gpus), default=None),
        "held": held_gpus(),
    }
    print(json.dumps(devices), flush=True)
    if gpus:
        from unibert.doctor.triton_probe import SIZE, double

        source = torch.arange(SIZE, device="cuda", dtype=torch.float32)
        print(json.dumps({"kernel": torch.equal(double(source), 2 * source)}), flush=True)


if __name__ == "__main__":
    main()
