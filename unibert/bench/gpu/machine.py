"""Requirements of ``unibert bench gpu``, checked without importing packages that may be missing."""

from __future__ import annotations

from importlib.util import find_spec

from unibert.errors import UserError

PACKAGES = ("torch", "triton", "transformers", "numpy", "yaml", "jsonargparse")


def check_gpu_packages() -> None:
    """Raise UserError unless all required packages are installed."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise UserError(
            f"bench gpu needs a CUDA GPU and the packages {', '.join(missing)}; name a Python that has torch with "
            "'make gpu PYTHON=…', and fetch the small packages with 'make gpu-packages' where there is a network"
        )


def check_gpu() -> None:
    """Raise UserError if torch finds no CUDA GPU."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "bench gpu needs a CUDA GPU, and torch finds none; 'unibert bench gpu --rehearse' runs all parts at small "
            "sizes on a CPU, and 'unibert bench kernels' measures there"
        )
