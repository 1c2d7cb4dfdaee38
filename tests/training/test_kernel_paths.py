import logging

import pytest
import torch
from unibert_kernels.paths import choose_path

from unibert.training.kernel_paths import announce_kernel_paths


@pytest.fixture(autouse=True)
def _logger_as_before():
    logger = logging.getLogger("unibert_kernels")
    before = logger.level, logger.propagate, list(logger.handlers)
    logger.handlers.clear()
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers[:] = before[1:]


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
