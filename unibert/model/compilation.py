"""``torch.compile`` of an encoder's layers, in place: names, checkpoints and exports stay as they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import _dynamo as dynamo
from torch import nn
from transformers import PreTrainedModel
from unibert_kernels.paths import triton_installed

from unibert.model.architectures import encoder_layers

MAX_COMPILATIONS = 64
"""Compilations of one function. One is needed for each shape, kind of layer and model; beyond torch's limit of 8, torch
would leave layers uncompiled, which ones depending on the order of the steps."""


def compile_layers(model: PreTrainedModel) -> tuple[int, int]:
    """Compile the forward pass of the encoder's layers, in training if the model is trained, else in evaluation.

    torch compiles a layer when it first runs on a shape, and once for all layers that are alike. Evaluation of a
    trained model, whose batches have many shapes, stays uncompiled. So do layers with hooks inside, which a compiled
    layer may not call.

    Returns:
        Number of the layers that are compiled, and of all.
    """
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, MAX_COMPILATIONS)
    trained = any(parameter.requires_grad for parameter in model.parameters())
    layers = encoder_layers(model)
    free = [layer for layer in layers if not _has_hooks_inside(layer)]
    for layer in free:
        layer.forward = _compiled_forward(layer, in_training=trained)
    return len(free), len(layers)


def _compiled_forward(layer: nn.Module, *, in_training: bool) -> Callable[..., Any]:
    plain = layer.forward
    # Kernels that are chosen by timing them would let a run that continues round otherwise than before.
    compiled = torch.compile(plain, dynamic=False, options={"deterministic": True})

    def forward(*arguments: Any, **named: Any) -> Any:
        return (compiled if layer.training == in_training else plain)(*arguments, **named)

    return forward


def _has_hooks_inside(layer: nn.Module) -> bool:
    inside = (module for module in layer.modules() if module is not layer)
    return any(module._forward_hooks or module._forward_pre_hooks for module in inside)


def compiler_obstacle(device: torch.device) -> str:
    """Return why torch cannot compile for ``device``, and the remedy; an empty string if it can."""
    if device.type == "cuda" and not triton_installed():
        return "needs triton, which is not installed; install it"
    variable, names = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++",))
    chosen = os.environ.get(variable)
    if any(shutil.which(name) for name in ([chosen] if chosen else names)):
        return ""
    language = "C" if device.type == "cuda" else "C++"
    missing = f"{variable}={chosen} does not exist" if chosen else "none is installed"
    return f"needs a {language} compiler, and {missing}; install {names[0]} or set {variable}"
