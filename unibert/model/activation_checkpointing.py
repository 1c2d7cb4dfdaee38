"""Activation checkpointing: layers that keep only their input for the backward pass, which computes the rest again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from unibert.model.architectures import encoder_layers


def checkpoint_layers(model: PreTrainedModel, every: int) -> None:
    """Let the first of every ``every`` layers keep only its input; losses and gradients stay the same, bit for bit.

    A layer that `unibert.model.compilation.compile_layers` has compiled is computed again as it was compiled.
    """
    for layer in encoder_layers(model)[::every]:
        layer.forward = _checkpointed_forward(layer)


def num_checkpointed(num_layers: int, every: int | None) -> int:
    """Return how many of ``num_layers`` layers `checkpoint_layers` changes; None stands for no checkpointing."""
    return 0 if every is None else len(range(0, num_layers, every))


def _checkpointed_forward(layer: nn.Module) -> Callable[..., Any]:
    plain = layer.forward
    # Without reentry, hooks and arguments by name work as without checkpoints. transformers' own switch would put the
    # checkpoint inside of what is compiled.
    checkpointed = partial(checkpoint, plain, use_reentrant=False)

    def forward(*arguments: Any, **named: Any) -> Any:
        return (checkpointed if torch.is_grad_enabled() else plain)(*arguments, **named)

    return forward
