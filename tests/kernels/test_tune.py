from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from unibert_kernels.fused import configs, tune
from unibert_kernels.fused.launch import gpu_generation

from .closeness import DEVICE


@pytest.mark.parametrize("generation", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_candidates_fit_and_include_the_entry_in_use(kernel: str, generation: str) -> None:
    candidates = list(tune.candidates(kernel, generation))
    in_use = configs.tile_config(kernel, torch.bfloat16, generation)
    shapes = {(entry.rows, entry.columns, entry.depth, entry.num_warps, entry.num_stages) for entry in candidates}
    assert (in_use.rows, in_use.columns, in_use.depth, in_use.num_warps, in_use.num_stages) in shapes
    assert len(candidates) > 10
    assert not any(entry.descriptors for entry in candidates if generation == "sm_80")


def test_the_fastest_is_written_and_the_other_entries_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    candidate = configs.TileConfig(
        rows=16, columns=512, depth=32, num_warps=8, num_stages=2, descriptors=False, reason=""
    )
    monkeypatch.setattr(tune, "candidates", lambda kernel, generation: [candidate])
    # For each kernel the entry in use, then the candidate, which wins, loses, wins by too little, and then always
    # loses.
    times = itertools.chain([2.0, 1.0], [1.0, 2.0], [1.0, 0.99], itertools.cycle([1.0, 2.0]))
    real_time = tune._time
    monkeypatch.setattr(tune, "_time", lambda *args: real_time(*args) and next(times))
    best = tune.tune(1031, 32, 40, DEVICE, minutes=10)
    chosen = [(entry.rows, entry.columns) for entry in best.values()]
    generation = gpu_generation(DEVICE)
    kept = [configs.tile_config(kernel, torch.bfloat16, generation) for kernel in tune.KERNELS[1:]]
    assert chosen[1:] == [(entry.rows, entry.columns) for entry in kept]
    assert chosen[0] == (16, 512)
    assert "1.000 ms, the best of 2" in best["statistics"].reason
    assert "statistics 16 x 512 x 32, 8 warps, 2 stages, pointers: 1.000 ms" in capsys.readouterr().out

    table = tmp_path / "configs.toml"
    tune.write_table(table, "sm_90", best)
    before, after = (tomllib.loads(path.read_text()) for path in (configs.TABLE, table))
    expected: dict[str, Any] = {**before["sm_90"]["statistics"]["half"], "rows": 16, "columns": 512, "depth": 32}
    expected |= {"num_warps": 8, "num_stages": 2, "descriptors": False, "reason": best["statistics"].reason}
    assert after["sm_90"]["statistics"]["half"] == expected
    assert after["sm_80"] == before["sm_80"]
    assert after["sm_90"]["statistics"]["single"] == before["sm_90"]["statistics"]["single"]
    assert table.read_text().startswith("# Tile sizes")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_tuning_ends_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main([]) == 1
    assert capsys.readouterr().err == "unibert_kernels.fused.tune: needs a CUDA GPU, but torch finds none\n"
