"""How a run computes the layers of its encoders: compiled or not, with or without activation checkpointing."""

from __future__ import annotations

from typing import Any

import torch

from unibert.errors import UserError
from unibert.model.activation_checkpointing import checkpoint_layers
from unibert.model.architectures import architecture_of
from unibert.model.compilation import compile_layers, compiler_obstacle
from unibert.model.unibert import UniBERT
from unibert.training.config import TrainingConfig
from unibert.training.engine import zero_stage


def check_compilation(training: TrainingConfig, ds_config: dict[str, Any], device: torch.device) -> None:
    """Check that the layers can be compiled, if ``training`` asks for it.

    Raises:
        UserError: under ZeRO 3, or without a compiler.
    """
    if not training.compile:
        return
    if zero_stage(ds_config) == 3:
        raise UserError(
            "training.compile: ZeRO 3 gathers weights by hooks inside of the layers, which torch.compile cannot keep; "
            "choose a training.ds_config of stage 0, 1 or 2, or set this to false"
        )
    if obstacle := compiler_obstacle(device):
        raise UserError(f"training.compile: torch.compile {obstacle}, or set this to false")


def set_up_layers(model: UniBERT, training: TrainingConfig) -> list[str]:
    """Compile and checkpoint the layers of student and teacher in place, as ``training`` says.

    Returns:
        Sentences that tell what is compiled.
    """
    sentences = []
    if training.compile:
        compiled = {"student": compile_layers(model.masked_lm)}
        teacher = None if model.distiller is None or model.distiller.teacher is None else model.distiller.teacher.model
        # An encoder that UniBERT runs by its parts keeps them as they are.
        if teacher is not None and architecture_of(teacher.config).own_encoder is None:
            compiled["teacher"] = compile_layers(teacher)
        counts = " and ".join(f"{some} of the {every} layers of the {who}" for who, (some, every) in compiled.items())
        sentences.append(f"torch.compile: {counts}; the first step takes longer, unless a cache has them")
    if training.activation_checkpointing is not None:
        checkpoint_layers(model.masked_lm, training.activation_checkpointing)
    return sentences
