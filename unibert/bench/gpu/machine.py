"""Whether this machine can run ``unibert bench gpu``, found out without importing what may be missing."""

from __future__ import annotations

from importlib.util import find_spec

from unibert.errors import UserError

PACKAGES = ("torch", "triton", "transformers", "numpy", "yaml", "jsonargparse")


def check_gpu_packages() -> None:
    """Raise UserError unless there are the packages that the script cannot do without."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise UserError(
            f"bench gpu needs a CUDA GPU and the packages {', '.join(missing)}; name a Python that has torch with "
            "'make gpu PYTHON=…', and fetch the small ones with 'make gpu-packages' where there is a network"
        )


def check_gpu() -> None:
    """Raise UserError unless there is a CUDA GPU."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "bench gpu needs a CUDA GPU, and torch finds none here; 'unibert bench gpu --rehearse' goes through all of "
            "it on a CPU at small sizes, 'unibert bench kernels' measures there"
        )
