"""``unibert bench kernels`` on shapes that take milliseconds. Workers take seconds to start, so few are started."""

from __future__ import annotations

import csv
import json

import pytest
import torch
import torch.nn.functional as F

from unibert.bench.availability import NotAvailableError
from unibert.bench.losses import mlm_providers, providers
from unibert.bench.losses.case import Case
from unibert.bench.losses.config import KernelBenchConfig
from unibert.bench.losses.inputs import make_inputs
from unibert.bench.losses.measure import measure_case
from unibert.bench.losses.provider import Provider, single_candidate
from unibert.cli import main

CASE = Case(rows=12, vocab=300, hidden=32)
SHAPE = ["--vocab", "[300]", "--hidden", "[32]", "--rows", "[12]", "--device", "cpu"]


def eager(inputs):
    return F.cross_entropy(F.linear(inputs.hidden, inputs.weight, inputs.bias).float(), inputs.labels)


def measured(*chosen, case=CASE):
    return {row["provider"]: row for row in measure_case(case, chosen, device="cpu", error_rows=8, repeats=1)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder and standard output of a run of the command line."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        words = [*SHAPE, "--providers", '["UniBERT chunked", "eager", "Liger, default"]', "--repeats", "1"]
        main(["bench", "kernels", *words, "--memory", "false", "--output", str(folder)])
    return folder, "\n".join(lines)


def test_table_json_csv_and_plot_hold_every_provider(run):
    folder, text = run
    results = json.loads((folder / "results.json").read_text())
    assert results["format"] == 2
    assert results["environment"]["versions"]["torch"]
    assert results["config"]["vocab"] == [300]
    assert results["matmul_tflops"] > 0
    rows = {row["provider"]: row for row in results["rows"]}
    assert set(rows) == {"UniBERT chunked", "eager", "Liger, default"}
    for name in ("UniBERT chunked", "eager"):
        row = rows[name]
        assert {key: row[key] for key in ("loss", "rows", "vocab", "hidden", "dtype")} == {
            "loss": "mlm",
            "rows": 12,
            "vocab": 300,
            "hidden": 32,
            "dtype": "float32",
        }
        assert row["status"] == "ran"
        assert row["both_ms"] == pytest.approx(row["forward_ms"] + row["backward_ms"])
        assert row["both_ms"] >= row["both_ms_min"] > 0
        assert row["accurate"]
        assert max(row["loss_error"], row["hidden_gradient_error"], row["weight_gradient_error"]) < 1e-5
        assert 0 < row["share_of_peak"] < 1
        assert name in text
    with (folder / "results.csv").open() as stream:
        assert [row["provider"] for row in csv.DictReader(stream)] == list(rows)
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")


def test_the_row_of_a_missing_peer_holds_the_reason(run):
    folder, text = run
    rows = json.loads((folder / "results.json").read_text())["rows"]
    (liger,) = (row for row in rows if row["provider"] == "Liger, default")
    assert liger["status"] == "not run"
    assert "liger-kernel" in liger["why"]
    assert f"Liger, default: not run: {liger['why']}" in text


def test_results_can_be_shown_again(run, capsys):
    folder, _ = run
    main(["bench", "show", str(folder)])
    assert "UniBERT chunked" in capsys.readouterr().out


@pytest.mark.parametrize("loss", ["mlm", "distillation", "adversary"])
@pytest.mark.parametrize("distribution", ["uniform", "trained"])
def test_chunked_and_eager_agree_with_float64(loss, distribution):
    case = Case(loss=loss, rows=40, vocab=300, hidden=32, distribution=distribution)
    chosen = [each for each in providers.providers_of(loss) if each.name in ("UniBERT chunked", "eager")]
    rows = measured(*chosen, case=case)
    assert [row["accurate"] for row in rows.values()] == [True, True]
    for row in rows.values():
        assert max(row["loss_error"], row["hidden_gradient_error"], row["weight_gradient_error"]) < 1e-5


def test_the_reference_includes_the_bias():
    case = Case(rows=12, vocab=300, hidden=32, bias=True)
    chosen = [each for each in mlm_providers.PROVIDERS if each.name in ("UniBERT chunked", "eager")]
    assert all(row["accurate"] for row in measured(*chosen, case=case).values())


def test_every_kind_of_failure_gives_a_row():
    def missing(inputs):
        raise NotAvailableError("nopackage is not installed")

    def exhausted(inputs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 70 GiB")

    def refusing(inputs):
        raise ValueError("path: recompute needs CUDA tensors")

    rows = measured(
        Provider("eager", "peer", single_candidate(eager)),
        Provider("missing", "peer", missing),
        Provider("exhausted", "peer", single_candidate(exhausted)),
        Provider("refusing path", "ours", single_candidate(refusing)),
        Provider("refusing peer", "peer", single_candidate(refusing)),
    )
    assert {name: row["status"] for name, row in rows.items()} == {
        "eager": "ran",
        "missing": "not run",
        "exhausted": "out of memory",
        "refusing path": "not run",
        "refusing peer": "failed",
    }
    assert rows["exhausted"]["why"].endswith("70 GiB")


def test_a_wrong_gradient_is_detected():
    def wrong(inputs):
        # The loss is right; the gradient is 2 % too small.
        loss = eager(inputs)
        return loss - 0.02 * (loss - loss.detach())

    row = measured(Provider("wrong", "ours", single_candidate(wrong)))["wrong"]
    assert row["loss_error"] < 1e-6
    assert row["weight_gradient_error"] == pytest.approx(0.02, rel=1e-3)
    assert not row["accurate"]


def test_the_fastest_option_is_chosen_and_named():
    def candidates(inputs):
        def slow():
            torch.randn(700, 700) @ torch.randn(700, 700)
            return eager(inputs)

        return {"slow": slow, "fast": lambda: eager(inputs)}

    row = measured(Provider("tuned", "peer", candidates, "tuned"))["tuned"]
    assert row["option"] == "fast"


def test_after_the_time_limit_providers_do_not_run():
    rows = measure_case(CASE, mlm_providers.PROVIDERS[:1], device="cpu", error_rows=8, seconds=-1)
    assert [row["why"] for row in rows] == ["the time given was used up"]


@pytest.mark.parametrize(("distribution", "low", "high"), [("uniform", 9.2, 9.5), ("trained", 1.5, 2.6)])
def test_inputs_have_the_loss_of_an_untrained_or_a_trained_model(distribution, low, high):
    inputs = make_inputs(Case(rows=400, vocab=10_000, hidden=64, distribution=distribution), "cpu")
    assert low < eager(inputs).item() < high


def test_inputs_depend_only_on_the_seed():
    first, again, other = (make_inputs(Case(rows=4, vocab=50, hidden=16, seed=seed), "cpu") for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.weight, other.weight)


def test_shapes_on_the_command_line_replace_those_of_the_preset():
    config = KernelBenchConfig(preset="cpu", vocab=[10, 20], losses=["mlm", "adversary"])
    shapes = [(case.loss, case.rows, case.vocab, case.hidden) for case in config.cases()]
    assert shapes == [("mlm", 2048, 10, 384), ("mlm", 2048, 20, 384), ("adversary", 2048, 1, 384)]
    first = KernelBenchConfig(preset="goals").cases()[0]
    assert (first.rows, first.vocab, first.hidden, first.dtype) == (9830, 250_000, 384, "bfloat16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels", "--vocabs", "[3]"], "did you mean 'vocab'"),
        (["kernels", "--hidden", "[0]"], "hidden: sizes must be positive"),
        (["kernels", "--minutes", "0"], "minutes: must be positive"),
        (["kernels", "fastest"], "preset"),
        (["kernels", "--providers", '["Liga"]'], "no provider matches Liga"),
        (["show", "/nowhere"], "/nowhere/results.json: cannot be read"),
        (["everything"], "there is no command 'bench everything'"),
    ],
)
def test_mistakes_give_one_line_errors(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("unibert: error: ")
    assert error.count("\n") == 1
