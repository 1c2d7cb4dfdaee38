from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from unibert_kernels import chunked
from unibert_kernels.fused import configs, distillation, head, mlm_head, partition

from tests import odd_offsets


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")


ON_THE_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA has its own memory")


@pytest.fixture(params=["aligned", pytest.param("odd", marks=[ON_THE_CPU, odd_offsets.needs_compiler])])
def placement(request: pytest.FixtureRequest) -> Iterator[None]:
    """Memory where torch and numpy place it, and at odd offsets."""
    with odd_offsets.odd_offsets() if request.param == "odd" else nullcontext():
        yield


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks so small that every loop runs more than once: at a vocabulary of 1031 seven rows per chunk and three per
    strip, five samples; on the Triton paths 512 columns and at most 30 rows."""
    monkeypatch.setattr(chunked, "WORKSPACE", 7 * 1031)
    monkeypatch.setattr(chunked, "STRIP", 3 * 1031)
    monkeypatch.setattr(chunked, "SAMPLES", 5)
    monkeypatch.setattr(partition, "RECOMPUTE_WORKSPACE", 40 * 512 * 4)
    for module in (mlm_head, distillation):
        monkeypatch.setattr(module, "RECOMPUTE_ROWS", 30)


@pytest.fixture(params=["pointers", "descriptors"])
def tile_loads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to load tiles, with a tile size that divides no vocabulary of the tests."""
    if request.param == "descriptors" and odd_offsets.in_use() and not torch.cuda.is_available():
        pytest.skip("descriptors need memory aligned to 16 bytes, as torch's own is")
    config = dataclasses.replace(configs.INTERPRETED, columns=128, descriptors=request.param == "descriptors")
    monkeypatch.setattr(head, "tile_config", lambda kernel, dtype, generation: config)
