from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from unibert_kernels.fused import configs, tune
from unibert_kernels.fused.launch import generation_of

from .closeness import DEVICE


@pytest.mark.parametrize("generation", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_candidates_fit_and_hold_what_the_table_says(kernel: str, generation: str) -> None:
    found = list(tune.candidates(kernel, generation))
    present = configs.tile_config(kernel, torch.bfloat16, generation)
    shapes = {(entry.rows, entry.columns, entry.depth, entry.num_warps, entry.num_stages) for entry in found}
    assert (present.rows, present.columns, present.depth, present.num_warps, present.num_stages) in shapes
    assert len(found) > 10
    assert not any(entry.descriptors for entry in found if generation == "sm_80")


def test_the_fastest_is_written_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rival = configs.TileConfig(rows=16, columns=512, depth=32, num_warps=8, num_stages=2, descriptors=False, reason="")
    monkeypatch.setattr(tune, "candidates", lambda kernel, generation: [rival])
    # The entry in use, then the rival, for each kernel: it wins, loses, wins by too little to count, loses ever after.
    times = itertools.chain([2.0, 1.0], [1.0, 2.0], [1.0, 0.99], itertools.cycle([1.0, 2.0]))
    run_for_real = tune._time
    monkeypatch.setattr(tune, "_time", lambda *args: run_for_real(*args) and next(times))
    best = tune.tune(1031, 32, 40, DEVICE, minutes=10)
    chosen = [(entry.rows, entry.columns) for entry in best.values()]
    generation = generation_of(DEVICE)
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to tune for")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main([]) == 1
    assert capsys.readouterr().err == "unibert_kernels.fused.tune: needs a CUDA GPU, torch finds none\n"
