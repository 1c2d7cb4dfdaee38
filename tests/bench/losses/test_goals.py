"""Goals on made-up results."""

from __future__ import annotations

import pytest

from unibert.bench.goals import format_goals
from unibert.bench.losses.goals import evaluate_goals


def row(provider, both_ms, side="peer", setting="fixed", **more):
    return {
        "loss": "mlm",
        "rows": 9830,
        "vocab": 250_000,
        "hidden": 384,
        "dtype": "bfloat16",
        "distribution": "trained",
        "bias": False,
        "seed": 0,
        "provider": provider,
        "side": side,
        "setting": setting,
        "option": "",
        "status": "ran",
        "both_ms": both_ms,
        "share_of_peak": 7.2 / both_ms,
        "workspace_bytes": 3e8,
        "accurate": True,
        "hidden_gradient_error": 2e-3,
        "weight_gradient_error": 2e-3,
    } | more


def good():
    return [
        row("UniBERT recompute", 13.7, "ours", hidden_gradient_error=5e-4),
        row("UniBERT exp-store", 10.2, "ours", workspace_bytes=4e9),
        row("eager", 45.0, hidden_gradient_error=9e-3),
        row("Liger, default", 250.0, setting="default"),
        row("Liger, tuned", 16.0, setting="tuned", option="chunk_mem_const=70"),
        row("UniBERT recompute", 22.0, "ours", loss="distillation"),
    ]


def outcomes(rows):
    return {goal.name: goal.met for goal in evaluate_goals({"rows": rows})}


def test_all_goals_are_met():
    met = outcomes(good())
    assert len(met) == 7
    assert all(met.values())
    assert "MISSED" not in format_goals(evaluate_goals({"rows": good()}))


@pytest.mark.parametrize(
    ("number", "change", "missed"),
    [
        (4, {"both_ms": 15.0}, "≥ 1.5 times the best peer"),
        (3, {"both_ms": 99.0}, "≥ 10 times the peers at their defaults"),
        (1, {"share_of_peak": 0.6}, "exp-store at ≥ 65% of peak on 6 N H V"),
        (0, {"workspace_bytes": 6e8}, "recompute's workspace < 0.5 GB"),
        (1, {"weight_gradient_error": 1e-2}, "gradient error of UniBERT exp-store ≤ eager's"),
        (5, {"both_ms": 23.0}, "distillation ≤ 2.2 times the MLM head"),
    ],
)
def test_each_goal_can_be_missed_by_itself(number, change, missed):
    rows = good()
    rows[number] |= change
    assert [name for name, met in outcomes(rows).items() if not met] == [missed]


def test_wide_models_have_a_lower_goal():
    rows = [one | {"hidden": 768} for one in good()]
    rows[4]["both_ms"] = 13.0
    assert outcomes(rows)["≥ 1.2 times the best peer"]


def test_inaccurate_providers_do_not_count():
    rows = good()
    rows[1] |= {"accurate": False}
    assert not outcomes(rows)["≥ 1.5 times the best peer"]


def test_the_cpu_goal_compares_with_eager_and_torchs_loss():
    rows = [
        row("UniBERT chunked", 5000.0, "ours", dtype="float32"),
        row("eager", 8000.0, dtype="float32"),
        row("F.linear_cross_entropy, tuned", 5100.0, setting="tuned", dtype="float32", option="batch_chunk_size=512"),
        row("torch.compile", 10.0, dtype="float32"),
    ]
    (goal,) = evaluate_goals({"rows": rows})
    assert goal.met
    assert "0.98" in goal.figure
    rows[2]["both_ms"] = 4900.0
    assert not evaluate_goals({"rows": rows})[0].met


def test_rows_that_did_not_run_decide_nothing():
    rows = [{**row("UniBERT recompute", 1.0, "ours"), "status": "not run", "why": "no GPU"}]
    assert format_goals(evaluate_goals({"rows": rows})) == "no goal can be decided from these rows"
