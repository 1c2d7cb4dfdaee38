import logging

import pytest
import torch
from unibert_kernels.paths import choose_path

from unibert.errors import UserError
from unibert.model.attention import choose_attention_path
from unibert.model.config import DistillationConfig, MLMConfig, ModelConfig
from unibert.model.encoder import build_masked_lm
from unibert.model.teacher import Teacher
from unibert.model.unibert import UniBERT
from unibert.training.kernel_paths import announce_kernel_paths, check_kernel_paths

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def _loggers_as_before():
    loggers = [logging.getLogger(name) for name in ("unibert_kernels", "unibert.model.attention")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.handlers.clear()
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers[:] = propagate, handlers


def test_each_path_is_announced_once(capsys):
    states = torch.empty(0, 32)
    # Before anyone listens, nothing counts as said.
    choose_path("a_loss", "auto", "fastest", states)
    announce_kernel_paths()
    for _ in range(2):
        choose_path("a_loss", "auto", "fastest", states)
        choose_path("another_loss", "chunked", "fastest", states)
    assert capsys.readouterr().err.splitlines() == [
        "unibert: a_loss: path chunked (Triton needs CUDA tensors, these are on cpu)",
        "unibert: another_loss: path chunked",
    ]


def test_attention_is_announced_once_for_student_and_teacher(capsys):
    student = build_masked_lm(ModelConfig(config=SIZES), 100, 16)
    teacher = build_masked_lm(ModelConfig(config=SIZES), 100, 16).requires_grad_(False)
    announce_kernel_paths()
    for _ in range(2):
        choose_attention_path("auto", student, torch.device("cpu"), torch.float32)
        choose_attention_path("sdpa", teacher, torch.device("cpu"), torch.float32)
    assert capsys.readouterr().err.splitlines() == [
        "unibert: attention: path varlen",
        "unibert: teacher's attention: path sdpa",
    ]


def test_attention_is_checked_for_student_and_teacher():
    student, teacher = (build_masked_lm(ModelConfig(config=SIZES), 100, 16).requires_grad_(False) for _ in range(2))
    model = UniBERT(
        student,
        3,
        mlm=MLMConfig(),
        teacher=Teacher(teacher),
        distillation=DistillationConfig(teacher=""),
        attention="flex",
    )
    check_kernel_paths(model, torch.device("cpu"), torch.float32)
    for trained in (student, teacher):
        trained.requires_grad_()
        with pytest.raises(UserError, match=r"^model\.attention: flex has no backward pass on cpu; take sdpa$"):
            check_kernel_paths(model, torch.device("cpu"), torch.float32)
        trained.requires_grad_(False)
