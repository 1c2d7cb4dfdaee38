"""Who takes part: a name and a way to turn a case's inputs into functions that return the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from unibert.bench.availability import NotAvailableError, installed

LossFunction = Callable[[], Tensor]
Side = Literal["ours", "peer"]
Setting = Literal["fixed", "default", "tuned"]


@dataclass(frozen=True)
class Provider:
    """One implementation of a loss.

    ``candidates`` takes the case's inputs and returns the functions to choose from, by the option that makes them
    differ; the fastest is the one measured. It imports its package when called, and raises `NotAvailableError` or
    ImportError where the provider cannot run.
    """

    name: str
    side: Side
    candidates: Callable[[Any], dict[str, LossFunction]]
    setting: Setting = "fixed"
    """``default`` and ``tuned`` are two rows of one peer whose chunk size is a choice; others are ``fixed``."""


def single(function: Callable[[Any], Tensor]) -> Callable[[Any], dict[str, LossFunction]]:
    """Candidates of a provider with nothing to choose: ``function`` of the inputs."""
    return lambda inputs: {"": lambda: function(inputs)}


def needs_cuda(tensor: Tensor, package: str) -> None:
    """Raise NotAvailableError unless ``tensor`` lies on a GPU."""
    if not tensor.is_cuda:
        raise NotAvailableError(f"{package} {installed(package)} needs a CUDA device")


def without_bias(bias: Tensor | None, who: str) -> None:
    """Raise NotAvailableError if the case has a bias, which ``who`` does not take."""
    if bias is not None:
        raise NotAvailableError(f"{who} takes no bias")
