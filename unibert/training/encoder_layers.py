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


def check_layers(training: TrainingConfig, ds_config: dict[str, Any], device: torch.device) -> None:
    """Check that the layers can be compiled and checkpointed as ``training`` asks for.

    Raises:
        UserError: under ZeRO 3, if it gets in the way, or without a compiler.
    """
    sharded = zero_stage(ds_config) == 3
    if sharded and training.activation_checkpointing == "selective":
        raise UserError(
            "training.activation_checkpointing: ZeRO 3 gathers weights inside of the layers, other ones when they are "
            "computed again, and torch keeps the outputs of operators apart by their order; choose a "
            "training.ds_config of stage 0, 1 or 2, or set this to 1"
        )
    if not training.compile:
        return
    if sharded:
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
