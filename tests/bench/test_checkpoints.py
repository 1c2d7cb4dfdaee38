"""``unibert bench checkpoints``."""

import json

import pytest

from tests.training.conftest import corpus, run_to_end  # noqa: F401 - a fixture

SMALL = ["--hidden_size=64", "--layers=1", "--sequences=4", "--checkpoints=2", "--checkpoint_every=3"]


@pytest.mark.slow
def test_bytes_and_times_of_each_checkpoint_are_reported(corpus, tmp_path):  # noqa: F811
    output = tmp_path / "results" / "checkpoints.json"
    status, printed = run_to_end("bench", "checkpoints", str(corpus), *SMALL, f"--output={output}")
    assert status == 0, printed
    results = json.loads(output.read_text())
    assert len(results["checkpoints"]) == 2
    for checkpoint in results["checkpoints"]:
        # AdamW's state and the fp32 weights of more than the 300 embeddings of 64 values.
        assert checkpoint["bytes"] > 12 * 300 * 64
        assert checkpoint["training_waited"] > 0
        assert checkpoint["writing"] > 0
    second = results["checkpoints"][1]
    assert results["waited_share_of_writing"] == second["training_waited"] / second["writing"]
    assert min(results["seconds_per_step"].values()) > 0
    assert "with one every 3 steps" in printed


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--hidden_size=100", "hidden_size: must be a multiple of 64, got 100"),
        ("--checkpoints=1", "checkpoints: must be at least 2, got 1"),
    ],
)
def test_invalid_sizes_are_rejected(option, message, tmp_path):
    status, printed = run_to_end("bench", "checkpoints", str(tmp_path), option)
    assert status == 1
    assert message in printed
    assert "Traceback" not in printed
