"""Activation checkpointing: layers that compute activations again in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext, checkpoint, noop_context_fn
from torch.utils.checkpoint import create_selective_checkpoint_contexts as selective_contexts
from transformers import PreTrainedModel

from unibert.model.architectures import encoder_layers

Checkpointing = int | Literal["selective"]
"""The first of every so many layers keeps only its input; or every layer keeps its input and what is expensive."""

_PRODUCTS = ("aten::mm", "aten::addmm")
_ATTENTION = ("attention", "attn")
"""What the names of torch's attention operators have in them. Products of scores, which are larger than what they give,
have none of these names, and are computed again."""


def checkpoint_layers(model: PreTrainedModel, checkpointing: Checkpointing) -> None:
    """Let layers compute activations again; losses and gradients stay the same, bit for bit.

    ``selective`` keeps the outputs of attention and of the products with weights, so that what is computed again costs
    little: norms, rotations, activation functions.

    A layer that `unibert.model.compilation.compile_layers` has compiled is computed again as it was compiled; it cannot
    be ``selective``.
    """
    layers = encoder_layers(model)
    for number in checkpointed_layers(len(layers), checkpointing):
        layers[number].forward = _checkpointed_forward(layers[number], selective=checkpointing == "selective")


def checkpointed_layers(num_layers: int, checkpointing: Checkpointing | None) -> range:
    """Return which of ``num_layers`` layers `checkpoint_layers` changes, from 0; None stands for no checkpointing."""
    if checkpointing is None:
        return range(0)
    return range(0, num_layers, 1 if checkpointing == "selective" else checkpointing)


def _checkpointed_forward(layer: nn.Module, *, selective: bool) -> Callable[..., Any]:
    plain = layer.forward
    # Without reentry, hooks and arguments by name work as without checkpoints. transformers' own switch would put the
    # checkpoint inside of what is compiled.
    contexts = partial(selective_contexts, _policy) if selective else noop_context_fn
    checkpointed = partial(checkpoint, plain, use_reentrant=False, context_fn=contexts)

    def forward(*arguments: Any, **named: Any) -> Any:
        return (checkpointed if torch.is_grad_enabled() else plain)(*arguments, **named)

    return forward


def _policy(context: SelectiveCheckpointContext, operator: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    name = operator.name()
    expensive = name in _PRODUCTS or any(part in name for part in _ATTENTION)
    return CheckpointPolicy.MUST_SAVE if expensive else CheckpointPolicy.PREFER_RECOMPUTE
