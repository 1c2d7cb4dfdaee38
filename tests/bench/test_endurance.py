"""``unibert bench endurance``, and that the trainer's memory does not grow."""

import json

import pytest

from tests.training.conftest import corpus, run_to_end  # noqa: F401 - a fixture


@pytest.mark.slow
def test_memory_does_not_grow_over_thousands_of_steps(corpus, tmp_path):  # noqa: F811
    output = tmp_path / "results" / "endurance.json"
    status, printed = run_to_end("bench", "endurance", str(corpus), "--steps=1000", f"--output={output}")
    assert status == 0, printed
    results = json.loads(output.read_text())
    assert [tenth["steps"] for tenth in results["tenths"]] == [100 * tenth for tenth in range(1, 11)]
    # From step 200 to 1000, in which the allocator still settles. What a step computes, its gradients and activations,
    # has 0.1 MiB at least; kept by each of 800 steps, it would make 80 MiB.
    assert results["memory_growth_mib"] < 32
    assert "a step grows by" in printed


def test_too_few_steps_are_rejected(tmp_path):
    status, printed = run_to_end("bench", "endurance", str(tmp_path), "--steps=100")
    assert status == 1
    assert "steps: must be at least 200, got 100" in printed
