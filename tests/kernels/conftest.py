from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from unibert_kernels import chunked


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows a chunk, three rows a strip at a vocabulary of 1031, five samples: every loop goes round."""
    monkeypatch.setattr(chunked, "WORKSPACE", 7 * 1031)
    monkeypatch.setattr(chunked, "STRIP", 3 * 1031)
    monkeypatch.setattr(chunked, "SAMPLES", 5)
