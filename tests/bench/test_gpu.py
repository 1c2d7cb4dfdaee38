"""What of ``unibert bench gpu`` a machine without a GPU can show."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from tests.training.conftest import corpus  # noqa: F401 - a fixture
from unibert.bench import gpu
from unibert.bench.attention import AttentionCase, packed_rows, time_paths
from unibert.bench.gpu import GpuBenchConfig, Outcome, attention_times, bench_gpu, compare_curves
from unibert.bench.short_training import TrainingSize, train
from unibert.cli import main
from unibert.model.config import ModelConfig
from unibert.training.metrics import read_metrics


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_that_it_needs_one(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "gpu"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("unibert: error: bench gpu needs a CUDA GPU")


@pytest.mark.parametrize("name", ["chunked", "distillation, chunked"])
def test_the_short_training_is_repeatable(name):
    size = TrainingSize(vocab=200, hidden=32, layers=1, batch=2, sequence=64, steps=3)
    first, again = (train(name, size, "cpu") for _ in range(2))
    assert len(first["losses"]) == 3
    assert first["losses"] == again["losses"]
    assert first["tokens_per_second"] > 0


def test_attention_paths_are_timed_where_they_can_run():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    case = AttentionCase(model=ModelConfig(config=sizes), rows=2, sequence_length=512)
    result = time_paths(case, "cpu")
    assert result["paths"]["sdpa"].keys() == {"forward_ms", "both_ms", "tokens_per_second"}
    line = attention_times(result)
    assert line.startswith(
        f"sdpa {result['paths']['sdpa']['both_ms']:.1f} ms, flex failed: ValueError: attention: flex"
    )
    assert "varlen failed: ValueError: attention: varlen needs CUDA tensors" in line


def test_rows_for_the_attention_paths_are_packed_well_with_documents_of_many_lengths():
    document_ids, position_ids = packed_rows(64, 2048)
    assert float((document_ids < 0).float().mean()) < 0.05
    lengths = document_ids[document_ids >= 0].bincount().float()
    # A quarter of a log-normal's values is below its median times exp(-0.67 sigma), here 204, a quarter above 785;
    # cutting at 2048 hardly moves them.
    assert 150 < float(lengths.quantile(0.25)) < 270
    assert 600 < float(lengths.quantile(0.75)) < 1000
    assert lengths.max() == 2048
    assert position_ids.max() == 2047


def test_curves_that_agree_and_that_do_not():
    falling = [9 - step / 40 for step in range(120)]
    results = {
        "chunked": {"losses": falling},
        "recompute": {"losses": [loss * 1.001 for loss in falling]},
        "exp-store": {"losses": [*falling[:60], *(loss * 1.05 for loss in falling[60:])]},
        "distillation, chunked": {"failed": "out of memory"},
        "distillation, recompute": {"losses": falling},
    }
    found = compare_curves(results)
    assert {name: entry["agree"] for name, entry in found.items()} == {"recompute": True, "exp-store": False}
    results["recompute"]["losses"] = [math.nan] * 120
    assert not compare_curves(results)["recompute"]["agree"]


@pytest.mark.slow
def test_a_run_that_resumes_is_told_from_one_that_does_not(corpus, tmp_path, monkeypatch):  # noqa: F811
    assert gpu.resumes_exactly(corpus, tmp_path, 200)
    assert len(list((tmp_path / "interrupted" / "checkpoints").glob("step-*"))) == 2
    first, *others = read_metrics(tmp_path / "interrupted" / "metrics.jsonl")
    assert others
    altered = [first, *others[:-1], others[-1] | {"heldout_mlm_loss": 0.0}]
    monkeypatch.setattr(gpu, "read_metrics", lambda file: altered if "interrupted" in str(file) else [first, *others])
    shutil.rmtree(tmp_path / "interrupted")
    assert not gpu.resumes_exactly(corpus, tmp_path, 200)


def test_a_part_that_fails_does_not_stop_the_next_and_other_parts_results_stay(tmp_path, monkeypatch, capsys):
    def broken(folder, seconds):
        raise RuntimeError("the kernels are on fire")

    monkeypatch.setattr(gpu, "check_gpu_machine", lambda: None)
    monkeypatch.setattr(gpu, "_correctness", broken)
    monkeypatch.setattr(gpu, "_training", lambda folder, seconds: Outcome(True, f"curves agree in {seconds:.0f} s"))
    (tmp_path / "summary.json").write_text(
        json.dumps({"parts": {"kernels": {"ok": True, "seconds": 1, "summary": "x"}}})
    )
    bench_gpu(GpuBenchConfig(parts=["correctness", "training"], minutes=2, output=tmp_path))
    parts = json.loads((tmp_path / "summary.json").read_text())["parts"]
    assert {part: record["ok"] for part, record in parts.items()} == {
        "kernels": True, "correctness": False, "training": True
    }  # fmt: skip
    text = capsys.readouterr().out
    assert "FAILED correctness" in text
    assert "the kernels are on fire" in text
    assert "curves agree in 120 s" in text
