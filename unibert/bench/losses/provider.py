"""A provider of the benchmark: a name, and functions that compute the loss of a case's inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from unibert.bench.availability import NotAvailableError, require_package

LossFunction = Callable[[], Tensor]
Side = Literal["ours", "peer"]
Setting = Literal["fixed", "default", "tuned"]


@dataclass(frozen=True)
class Provider:
    """One implementation of a loss.

    ``candidates`` takes the case's inputs and returns a function for each option; the fastest is measured. It imports
    its package when called, and raises `NotAvailableError` or ImportError where the provider cannot run.
    """

    name: str
    side: Side
    candidates: Callable[[Any], dict[str, LossFunction]]
    setting: Setting = "fixed"
    """``default`` and ``tuned`` for the two rows of a peer with a configurable chunk size; ``fixed`` for all others."""


def single_candidate(function: Callable[[Any], Tensor]) -> Callable[[Any], dict[str, LossFunction]]:
    """Candidates of a provider without options: ``function`` of the inputs."""
    return lambda inputs: {"": lambda: function(inputs)}


def raise_if_not_cuda(tensor: Tensor, package: str) -> None:
    """Raise NotAvailableError if ``tensor`` is not on a GPU."""
    if not tensor.is_cuda:
        raise NotAvailableError(f"{package} {require_package(package)} needs a CUDA device")


def raise_if_bias(bias: Tensor | None, provider: str) -> None:
    """Raise NotAvailableError if the case has a bias, which ``provider`` does not support."""
    if bias is not None:
        raise NotAvailableError(f"{provider} takes no bias")
