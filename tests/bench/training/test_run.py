"""``unibert bench train`` on a tiny model, in one process, since each start takes seconds."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.training.processes import fork, statuses
from unibert.bench.training.results import evaluate_train_goals

SIZES = {"vocab_size": 500, "hidden_size": 64, "layers": 1, "intermediate_size": 64, "sequence_length": 32}
SIZES |= {"batch_size": 2, "document_length": 12, "warmup": 1, "steps": 2, "repeats": 1}


def run_here(output: Path, **options: Any) -> None:
    """The benchmark, with its workers in this process; of the ablations all but those that change the batch."""
    from unibert.bench.training import run, worker
    from unibert.bench.training.config import TrainBenchConfig

    def run_worker(module: str, job: dict[str, Any], *, keeps_memory: bool = False) -> dict[str, Any]:
        job_file, result_file = output.with_name("job.json"), output.with_name("result.json")
        job_file.write_text(json.dumps(job))
        worker.main(str(job_file), str(result_file))
        return json.loads(result_file.read_text())

    run.run_worker = run_worker
    words = ["UniBERT", "Trainer, sparse", "plain", "without fused", "without kept", "without MLM", "with activation"]
    run.bench_train(TrainBenchConfig(**{"providers": words, "output": output, **SIZES, **options}))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("train")
    process = fork(folder / "printed.txt", run_here, folder / "train.json")
    assert statuses([process], timeout=500) == [0], (folder / "printed.txt").read_text()
    assert (folder / "train.png").read_bytes().startswith(b"\x89PNG")
    assert "UniBERT, whole trainer" in (folder / "printed.txt").read_text()
    return json.loads((folder / "train.json").read_text())


def test_every_provider_has_its_figures(results):
    rows = {row["name"]: row for row in results["rows"]}
    ours = rows["UniBERT, module and AdamW"]
    for name in ("UniBERT, module and AdamW", "UniBERT, whole trainer", "plain PyTorch"):
        row = rows[name]
        assert row["status"] == "ran", row
        assert sum(row["parts"].values()) <= row["seconds_per_step"] * 1.01
        assert row["mfu"] == pytest.approx(
            row["tokens_per_second"] * results["flops_per_token"] / results["peak_flops"]
        )
    # All train on the same tokens: without padding, which the packing of these short documents leaves.
    tokens = {run["name"]: run["tokens"] for run in results["runs"]}
    assert tokens["UniBERT, whole trainer"] == pytest.approx(tokens["plain PyTorch"], rel=0.2)
    assert ours["first_step_seconds"] > 0


def test_the_optimisations_change_no_loss(results):
    differences = {row["name"]: row["loss_difference"] for row in results["rows"] if row["side"] == "ablation"}
    # fp32: sums of at most a few thousand terms in another order.
    assert differences == pytest.approx(dict.fromkeys(differences, 0.0), abs=1e-5)
    assert len(differences) == 4


@pytest.mark.slow
def test_two_ranks_show_their_communication(tmp_path):
    options = {"providers": ["whole", "plain"], "ranks": 2, "ds_config": "zero1", "warmup": 1}
    process = fork(tmp_path / "printed.txt", partial(run_here, **options), tmp_path / "train.json")
    assert statuses([process], timeout=500) == [0], (tmp_path / "printed.txt").read_text()
    rows = {row["name"]: row for row in json.loads((tmp_path / "train.json").read_text())["rows"]}
    assert rows["plain PyTorch"]["status"] == "ran"
    trainer = rows["UniBERT, whole trainer"]
    embeddings = SIZES["vocab_size"] * SIZES["hidden_size"]
    # fp32 gradients of all weights, of which most are embeddings; then each rank gathers the weights of both.
    assert trainer["communication"]["all_reduce"]["bytes"] > 4 * embeddings
    seconds = sum(figures["seconds"] for figures in trainer["communication"].values())
    assert 0 < seconds < trainer["parts"]["backward"] + trainer["parts"]["optimizer"]
    assert "all_gather_into_tensor" in (tmp_path / "printed.txt").read_text()


def test_a_missing_peer_has_the_reason(results):
    rows = [row for row in results["rows"] if row["name"].startswith("transformers")]
    reasons = {"accelerate is not installed", "a GPU's process needs no such settings"}
    assert len(rows) == 2
    assert all(row["status"] == "ran" or row["why"] in reasons for row in rows)


def test_goals_compare_with_the_fastest_peer(results):
    def row(name: str, side: str, rate: float, size: float) -> dict[str, Any]:
        return {"name": name, "side": side, "status": "ran", "tokens_per_second": rate, "peak_bytes": size}

    rows = [row("UniBERT, module and AdamW", "ours", 140, 1), row("UniBERT, whole trainer", "ours", 130, 1)]
    rows += [row("slow", "peer", 10, 9), row("fast", "peer", 100, 3)]
    goals = list(evaluate_train_goals({**results, "rows": rows}))
    assert [(goal.met, goal.figure) for goal in goals] == [
        (True, "1.40 (fast 100)"),
        (True, "33%"),
        (False, "92.9%"),
    ]
