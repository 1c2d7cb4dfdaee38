"""Implementations of the losses and of attention: checked before a run starts, logged once chosen."""

from __future__ import annotations

import logging

import torch
from unibert_kernels.paths import choose_head_path, choose_path, default_workspace

from unibert.errors import UserError
from unibert.model import attention
from unibert.model.architectures import architecture_of
from unibert.model.attention import choose_attention_path
from unibert.model.unibert import UniBERT


def check_kernel_paths(model: UniBERT, device: torch.device, dtype: torch.dtype) -> None:
    """Check that every path that the configuration names supports the model on ``device`` in ``dtype``.

    Raises:
        UserError: if one does not; names the key, the obstacle and an alternative.
    """
    width = model.masked_lm.config.hidden_size
    states = torch.empty(0, width, device=device, dtype=dtype)
    workspace = model.mlm.max_workspace or default_workspace(device)
    key = ""
    try:
        if model.mlm.path != "auto":
            key = "mlm"
            choose_head_path("mlm_head_loss", model.mlm.path, "exp-store", workspace, 0, states, states)
        distiller = model.distiller
        if distiller is not None and distiller.config.path != "auto":
            key = "distillation"
            choose_head_path("distillation_loss", distiller.config.path, "store-teacher", workspace, 0, states, states)
        if model.attention != "auto":
            key = "model"
            choose_attention_path(model.attention, model.masked_lm, device, dtype)
            teacher = None if distiller is None or distiller.teacher is None else distiller.teacher.model
            if teacher is not None and architecture_of(teacher.config).own_encoder is None:
                choose_attention_path(model.attention, teacher, device, teacher.dtype)
        if model.adversary is not None and model.adversary.path != "auto":
            key = "adversary"
            choose_path("adversary_loss", model.adversary.path, "fused", states)
    except ValueError as error:
        raise UserError(f"{key}.{error}") from error


def announce_kernel_paths() -> None:
    """Print on stderr, from now on, the path that each loss and attention take, one line each."""
    for name in ("unibert_kernels", attention.__name__):
        logger = logging.getLogger(name)
        if not logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("unibert: %(message)s"))
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
