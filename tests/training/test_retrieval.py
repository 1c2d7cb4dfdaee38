"""Retrieval and language probe in training. `test_export`, `test_zero` and `test_resume` measure them too."""

import pytest

from tests.refusals import refused
from tests.training.compare import lines_without_timing
from unibert.training.checkpoint.folder import complete_checkpoints, describe
from unibert.training.metrics_file import read_metrics

TOKENS_PER_STEP = 8 * 64
# With dropout, whose masks would differ if the measurement drew random numbers or left the model in evaluation mode.
DROPOUT = "--model.config={hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 96, \
local_attention: 16, mlp_dropout: 0.1, embedding_dropout: 0.1}"


def test_a_run_that_measures_trains_as_one_that_does_not_and_keeps_its_best(run_file, aligned, tmp_path, unibert):
    plain, measured = tmp_path / "plain", tmp_path / "measured"
    words = ["pretrain", str(run_file), DROPOUT, f"--training.tokens={16 * TOKENS_PER_STEP}"]
    words += ["--training.checkpoint_every=3", "--training.keep_checkpoints=1"]
    assert unibert(*words, f"--run_dir={plain}")[0] == 0
    words += [f"--training.retrieval={aligned}", f"--training.retrieval_every_tokens={5 * TOKENS_PER_STEP}"]
    # Nothing but the language's own words is to be predicted, so that languages drift apart while the run goes on.
    words += ["--training.keep_best=true", "--training.best_by=retrieval_raw"]
    status, output = unibert(*words, f"--run_dir={measured}")
    assert status == 0, output

    lines = lines_without_timing(measured)
    assert [line for line in lines if "retrieval_raw" not in line] == lines_without_timing(plain)
    retrieval = {line["step"]: line["retrieval_raw"] for line in read_metrics(measured / "metrics.jsonl").retrieval}
    # Every 5 steps, with every checkpoint, and at both ends.
    assert list(retrieval) == [0, 3, 5, 6, 9, 10, 12, 15, 16]

    checkpoints = {one["step"]: one for one in map(describe, complete_checkpoints(measured / "checkpoints"))}
    best = max((3, 6, 9, 12, 15, 16), key=lambda step: retrieval[step])
    assert best != 16
    assert list(checkpoints) == [best, 16]
    assert all(one["retrieval_raw"] == retrieval[step] for step, one in checkpoints.items())


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
    from unibert.configuration import parse
    from unibert.training.config import RunConfig

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
