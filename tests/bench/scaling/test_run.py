"""``unibert bench scaling`` on a tiny model: what DeepSpeed's ranks send each other, as its own log has it."""

import json

import pytest

from tests.training.conftest import run_to_end

SIZES = {"vocab_size": 500, "hidden_size": 64, "layers": 1, "intermediate_size": 64, "sequence_length": 32}
SIZES |= {"batch_size": 2, "micro_batches": 2, "pause": 0, "warmup": 1, "steps": 2, "repeats": 1}
WORDS = [f"--{key}={value}" for key, value in SIZES.items()]


@pytest.mark.slow
def test_ranks_send_what_the_plan_counts(tmp_path):
    output = tmp_path / "scaling.json"
    cases = '--cases=["zero2, 2 micro", "zero3, 2 micro"]'
    status, printed = run_to_end("bench", "scaling", cases, *WORDS, f"--output={output}")
    assert status == 0, printed
    results = json.loads(output.read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert {row["status"] for row in rows.values()} == {"ran"}, printed
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for stage in (2, 3):
        row = rows[f"2 ranks, zero{stage}, 2 micro-batches"]
        logged = {operation: figures["bytes"] for operation, figures in row["communication"].items()}
        for operation, size in row["predicted"]["bytes"].items():
            # Norms and flags are a few numbers more.
            assert logged[operation] == pytest.approx(size, rel=0.001), (stage, operation)
        assert set(row["predicted"]["bytes"]) <= set(logged)
        parts = row["predicted"]
        assert parts["exchange"] > 0
        assert 0 < parts["update"] < parts["passes"]
    assert "2 ranks, zero2, 2 micro-batches: all_reduce" in printed
    assert "off by" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cases=[zero9]"], "cases: no case matches zero9; available are 2 × 1 rank, zero0, 2 × 1 rank, zero1"),
        (["--ranks=1"], "ranks: must be at least 2, got 1"),
        (["--hidden_size=100"], "hidden_size: must be a multiple of 64, got 100"),
    ],
)
def test_mistakes(words, sentence):
    status, printed = run_to_end("bench", "scaling", *words)
    assert status == 1
    assert sentence in printed
    assert "Traceback" not in printed
