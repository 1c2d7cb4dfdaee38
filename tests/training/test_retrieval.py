"""Retrieval and language probe in training. `test_zero` and `test_resume` measure them too."""

import json
from pathlib import Path

import pytest

from tests.refusals import refused
from tests.training.compare import lines_without_timing
from tests.training.conftest import run_to_end
from unibert.cli import main
from unibert.configuration import parse
from unibert.training.checkpoint.folder import complete_checkpoints, describe
from unibert.training.config import RunConfig
from unibert.training.metrics_file import Record, read_metrics

TOKENS_PER_STEP = 8 * 64
# With dropout, whose masks would differ if the measurement drew random numbers or left the model in evaluation mode.
DROPOUT = "--model.config={hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 96, \
local_attention: 16, mlp_dropout: 0.1, embedding_dropout: 0.1}"


@pytest.fixture(scope="module")
def words(module_run_file) -> list[str]:
    words = ["pretrain", str(module_run_file), DROPOUT, f"--training.tokens={16 * TOKENS_PER_STEP}"]
    return [*words, "--training.checkpoint_every=3", "--training.keep_checkpoints=1"]


@pytest.fixture(scope="module")
def measured(words, aligned, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("measured") / "run"
    options = [f"--training.retrieval={aligned}", f"--training.retrieval_every_tokens={5 * TOKENS_PER_STEP}"]
    options += ["--training.retrieval_sentences=25", "--training.keep_best=true", "--training.best_by=retrieval_raw"]
    status, output = run_to_end(*words, *options, f"--run_dir={run_dir}")
    assert status == 0, output
    return run_dir


@pytest.fixture(scope="module")
def lines(measured) -> dict[int, Record]:
    return {line["step"]: line for line in read_metrics(measured / "metrics.jsonl").retrieval}


def test_a_run_that_measures_trains_as_one_that_does_not(words, measured, tmp_path, unibert):
    plain = tmp_path / "plain"
    assert unibert(*words, f"--run_dir={plain}")[0] == 0
    others = [line for line in lines_without_timing(measured) if "retrieval_raw" not in line]
    assert others == lines_without_timing(plain)


def test_the_best_checkpoint_by_retrieval_is_kept(measured, lines):
    # At both ends, every 5 steps, and with every checkpoint.
    assert list(lines) == [0, 3, 5, 6, 9, 10, 12, 15, 16]
    assert all(line["tokens"] == step * TOKENS_PER_STEP for step, line in lines.items())
    checkpoints = {one["step"]: one for one in map(describe, complete_checkpoints(measured / "checkpoints"))}
    # As each language's own words are learnt, the languages drift apart, from a quarter found to a twelfth.
    best = max((3, 6, 9, 12, 15, 16), key=lambda step: lines[step]["retrieval_raw"])
    assert best != 16
    assert list(checkpoints) == [best, 16]
    for step, one in checkpoints.items():
        assert [one[key] for key in ("retrieval_raw", "retrieval_centred", "retrieval_margin")] == [
            lines[step][key] for key in ("retrieval_raw", "retrieval_centred", "retrieval_margin")
        ]


def test_training_measures_what_an_evaluation_of_the_export_does(measured, lines, aligned, tmp_path):
    options = ["--max_sentences=25", "--probe_sentences=25", "--probe_restarts=1", "--layers=-1", "--device=cpu"]
    main(["evaluate", str(measured / "model"), f"--retrieval={aligned}", f"--output={tmp_path}", *options])
    scores = json.loads((tmp_path / "scores.json").read_text())["model"]
    geometry, last = scores["geometry"]["2"], lines[16]
    # Sums of some dozen fp32 terms of order 1, in batches of other shapes.
    assert {name: last[f"geometry_{name}"] for name in geometry} == pytest.approx(geometry, rel=1e-5)
    # An accuracy counts sentences: 150 queries, and 8 test sentences of each language. Where two neighbours are equally
    # near but for rounding, one may count here and the other there.
    for kind, accuracy in scores["retrieval_mean"]["2"].items():
        assert last[f"retrieval_{kind}"] == pytest.approx(accuracy, abs=1.01 / 150)
    assert last["probe_linear"] == pytest.approx(scores["probe"]["2"]["raw"]["linear"]["mean"], abs=1.01 / 24)
    assert (last["retrieval_chance"], last["probe_chance"]) == pytest.approx((1 / 25, 1 / 3))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["--training.retrieval_every_tokens=5"], "training.retrieval_every_tokens: there is nothing to measure; name"),
        (["--training.retrieval=d", "--training.retrieval_every_tokens=0"], "must be positive or null, got 0"),
        (["--training.retrieval_sentences=1"], "training.retrieval_sentences: must be at least 2, got 1"),
        (
            ["--training.keep_best=true", "--training.best_by=retrieval_raw"],
            "training.best_by: retrieval_raw is not measured; name a folder of aligned sentences in training.retrieval",
        ),
        (
            ["--training.keep_best=true", "--mlm.weight=0"],
            "training.keep_best: judges by the held-out MLM loss, but no loss trains predictions; set training.best_by "
            "to retrieval_raw",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(overrides, sentence, run_file, capsys):
    assert sentence in refused(capsys, "pretrain", run_file, *overrides)[1]


def test_a_run_that_trains_no_predictions_may_keep_its_best_by_retrieval(run_file, aligned):
    words = ["--config", str(run_file), "--mlm.weight=0", f"--training.retrieval={aligned}"]
    words += ["--training.keep_best=true", "--training.best_by=retrieval_centred"]
    assert parse(RunConfig, words).training.keeps_best_by_retrieval


def test_sentences_are_checked_before_the_first_step(run_file, tmp_path, unibert):
    few = tmp_path / "few"
    few.mkdir()
    # Both lines of a pair of two are trained on or tested on, not one of each.
    for pair, lines in (("deu-eng", range(2)), ("fra-eng", range(2, 20)), ("rus-eng", range(20, 22))):
        for index, code in enumerate(pair.split("-")):
            (few / f"tatoeba.{pair}.{code}").write_text("".join(f"w{line} w{index}\n" for line in lines))
    for folder, sentence in (
        (
            tmp_path / "none",
            f"training.retrieval: {tmp_path / 'none'}: no such folder; name one with aligned sentences",
        ),
        (few, f"training.retrieval: the language probe needs more sentences than those of {few}"),
    ):
        status, output = unibert("pretrain", str(run_file), f"--training.retrieval={folder}")
        assert (status, "Traceback" in output, "step 1/" in output) == (1, False, False), output
        assert sentence in output
