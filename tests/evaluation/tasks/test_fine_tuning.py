"""Fine-tuning from files to scores, and going on after a stop."""

import json
import shutil
from contextlib import nullcontext

import pytest
import torch

from tests.evaluation.tasks.inputs import save_model, write_ner, write_nli, write_qa
from unibert.errors import UserError
from unibert.evaluation.embeddings import load_encoder
from unibert.evaluation.tasks import fine_tuning, run
from unibert.evaluation.tasks.files import TaskFile
from unibert.evaluation.tasks.ner import NamedEntities
from unibert.evaluation.tasks.nli import Inference, InferencePairs
from unibert.evaluation.tasks.options import FineTuningConfig
from unibert.evaluation.tasks.qa import Question, QuestionAnswering
from unibert.evaluation.tasks.run import EvaluatedModel, read_predictions, run_task
from unibert.evaluation.tasks.task import Examples

TASKS = {task.name: task for task in (NamedEntities(), InferencePairs(), QuestionAnswering())}
OPTIONS = FineTuningConfig(epochs=6, learning_rate=3e-3, batch_size=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for language, seed in (("en", 0), ("de", 10), ("fr", 20)):
        for split, count in (("train", 240), ("dev", 40), ("test", 60)):
            if split != "train" or language != "fr":
                write_ner(folder / "ner" / "panx" / language / f"{split}.tsv", count, seed)
                write_nli(folder / "nli" / "xnli" / f"{split}-{language}.tsv", count, seed + 1)
            seed += 1
        write_qa(folder / "qa" / "xquad" / f"xquad.{language}.json", 40, seed)
    write_qa(folder / "qa" / "tydiqa.goldp.en.train.json", 300, 99)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return EvaluatedModel(save_model(tmp_path_factory.mktemp("model")), "0" * 64)


def scored(name, folder, model, output, options=OPTIONS, **changes):
    settings = {"source": "en", "languages": None, "seed": 1, "device": torch.device("cpu")} | changes
    return run_task(TASKS[name], folder, model, options, output=output, **settings)


@pytest.fixture(scope="module", params=TASKS)
def task_scores(request, data, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / request.param
    return request.param, scored(request.param, data / request.param, model, output), output


def test_what_follows_from_the_words_is_learnt_and_transferred(task_scores):
    name, content, _ = task_scores
    metric = TASKS[name].metric
    # The words decide; the languages share them.
    assert {unit: scores[metric] > 0.9 for unit, scores in content["scores"].items()} == dict.fromkeys(
        content["scores"], True
    )
    assert {one["language"] for one in content["sets"].values()} == {"en", "de", "fr"}


def test_training_is_on_the_source_and_chosen_by_it(task_scores):
    name, content, _ = task_scores
    [training] = content["training"]
    expected = {
        "ner": ({"panx en train": 240}, "panx en dev"),
        "nli": ({"xnli en train": 240}, "xnli en dev"),
        # Without a development set, the end of the training data chooses.
        "qa": ({"tydiqa en train": 270}, "tydiqa en train"),
    }[name]
    assert (training["sets"], training["dev"]["set"]) == expected
    assert training["dev_scores"][training["best_epoch"] - 1] == max(training["dev_scores"])


def test_scores_follow_from_the_predictions_that_are_kept(task_scores):
    name, content, output = task_scores
    for unit, scores in content["scores"].items():
        lines = read_predictions(output / "predictions" / f"{unit.replace(' ', '-')}.jsonl")
        assert len(lines) == content["sets"][unit]["examples"]
        assert TASKS[name].score(lines, content["sets"][unit]["language"]) == scores
    assert json.loads((output / "scores.json").read_text()) == content
    assert not (output / "fine-tuned").exists()


def test_embeddings_of_other_tokens_do_not_matter(data, model, tmp_path, monkeypatch):
    """Bit for bit, with all embeddings and with those that occur: losses, dev scores and all weights."""
    kept = {}
    fine_tune = fine_tuning.fine_tune

    def keeps(trained, *arguments, **named):
        log = fine_tune(trained, *arguments, **named)
        kept[name] = (log, {key: value.clone() for key, value in trained.state_dict().items()})
        return log

    monkeypatch.setattr(run, "fine_tune", keeps)
    options = FineTuningConfig(epochs=3, learning_rate=3e-3, batch_size=16)
    for name in ("few", "all"):
        if name == "all":
            monkeypatch.setattr(fine_tuning, "only_used_embeddings", lambda encoder, ids: nullcontext())
        scored("nli", data / "nli", model, tmp_path / name, options)
    assert kept["few"][0] == kept["all"][0]
    assert kept["few"][1].keys() == kept["all"][1].keys()
    assert all(torch.equal(kept["few"][1][key], value) for key, value in kept["all"][1].items())
    before = load_encoder(model.folder)[0].get_input_embeddings().weight
    after = kept["few"][1]["encoder.embeddings.tok_embeddings.weight"]
    changed = (before != after).any(dim=1)
    # "who" and "in" do not occur in inference.
    assert not changed[-2:].any()
    assert changed[5:-3].any()


def test_shuffled_labels_fall_to_chance(data, model, tmp_path):
    folder = tmp_path / "nli"
    for seed, (split, count) in enumerate((("train", 240), ("dev", 40), ("test", 180))):
        write_nli(folder / "xnli" / f"{split}-en.tsv", count, seed, shuffled=True)
    content = scored("nli", folder, model, tmp_path / "output")
    # 180 labels that are independent of the text: five standard deviations of a third are 0.18.
    assert content["mean"]["accuracy"] == pytest.approx(1 / 3, abs=0.18)


class Stop(Exception):
    """Stands for a kill."""


def test_a_stopped_run_goes_on_and_gives_the_same(data, model, tmp_path, monkeypatch, task_scores):
    name, content, _ = task_scores
    folder = data / name
    predictions = run._TaskRun._predict
    calls = []

    def stops(self, model, framing, tested, labels):
        calls.append(tested.file.unit)
        if len(calls) == 3:
            raise Stop
        return predictions(self, model, framing, tested, labels)

    monkeypatch.setattr(run._TaskRun, "_predict", stops)
    with pytest.raises(Stop):
        scored(name, folder, model, tmp_path / "output")
    monkeypatch.setattr(run, "fine_tune", None)
    resumed = scored(name, folder, model, tmp_path / "output")
    # Only the third set was left.
    assert len(calls) == 4
    assert calls[2] == calls[3]
    for part in (content, resumed):
        part["training"] = [{key: value for key, value in one.items() if key != "seconds"} for one in part["training"]]
    assert resumed == content


def test_results_of_another_model_or_other_settings_are_refused(data, model, tmp_path):
    output = tmp_path / "nli"
    options = FineTuningConfig(epochs=1, max_train=30, max_test=9)
    first = scored("nli", data / "nli", model, output, options)
    assert first["sets"]["xnli de"]["examples"] == 9
    assert first["sets"]["xnli de"]["of"] == 60
    assert scored("nli", data / "nli", model, output, options) == first
    other = EvaluatedModel(model.folder, "1" * 64)
    with pytest.raises(UserError, match=r"holds results of model\.weights_sha256 000000000000…"):
        scored("nli", data / "nli", other, output, options)
    with pytest.raises(UserError, match=r"holds results of max_test 9, which is not"):
        scored("nli", data / "nli", model, output, FineTuningConfig(epochs=1, max_train=30, max_test=8))
    with pytest.raises(UserError, match=r"holds results of seed 1"):
        scored("nli", data / "nli", model, output, options, seed=2)


@pytest.mark.parametrize(("training", "languages"), [("in-language", [["de"], ["en"]]), ("all", [["de", "en"]])])
def test_training_in_other_languages(data, model, tmp_path, training, languages):
    options = FineTuningConfig(training=training, epochs=1, max_train=30, max_test=9)
    content = scored("nli", data / "nli", model, tmp_path / "nli", options)
    assert [one["languages"] for one in content["training"]] == languages
    # French has no training data of its own.
    assert set(content["sets"]) == {"xnli de", "xnli en"} | ({"xnli fr"} if training == "all" else set())


def test_centring_subtracts_the_mean_of_each_language(data, model, tmp_path):
    hidden_size = 32
    centred = EvaluatedModel(
        model.folder,
        model.weights_sha256,
        language_means={"en": torch.full((hidden_size,), 2.0), "de": torch.zeros(hidden_size)},
    )
    options = FineTuningConfig(epochs=1, max_train=60, max_test=30)
    content = scored("nli", data / "nli", centred, tmp_path / "centred", options)
    assert set(content["sets"]) == {"xnli de", "xnli en"}
    moved = EvaluatedModel(
        model.folder, model.weights_sha256, language_means=dict.fromkeys(("en", "de"), torch.zeros(hidden_size))
    )
    plain = scored("nli", data / "nli", moved, tmp_path / "plain", options)
    assert content["training"][0]["losses"] != plain["training"][0]["losses"]
    without = EvaluatedModel(model.folder, model.weights_sha256, language_means={"de": torch.zeros(hidden_size)})
    with pytest.raises(UserError, match=r"has no mean of en; write its means with unibert export"):
        scored("nli", data / "nli", without, tmp_path / "without", options)


def test_pairs_of_two_languages_do_not_count_in_the_mean(data, model, tmp_path):
    folder = tmp_path / "nli"
    shutil.copytree(data / "nli", folder)
    # French is a translation of English: other words, the same labels.
    english = (folder / "xnli" / "test-en.tsv").read_text()
    (folder / "xnli" / "test-fr.tsv").write_text(english.replace("word", "name"))
    (folder / "xnli" / "test-de.tsv").write_text("word1\tword2\tneutral\n")
    options = FineTuningConfig(epochs=1, max_train=30, max_test=9, mixed=True)
    content = scored("nli", folder, model, tmp_path / "output", options)
    assert list(content["scores"]) == ["xnli de", "xnli en", "xnli fr", "xnli en+fr", "xnli fr+en"]
    alone = [content["scores"][f"xnli {language}"]["accuracy"] for language in ("de", "en", "fr")]
    assert content["mean"]["accuracy"] == pytest.approx(sum(alone) / 3)
    pairs = [content["scores"][f"xnli {pair}"]["accuracy"] for pair in ("en+fr", "fr+en")]
    assert content["mixed_mean"]["accuracy"] == pytest.approx(sum(pairs) / 2)


def test_mixed_examples_take_one_text_of_each_language():
    file = TaskFile(None, "set", "en", "test")
    one = Examples(file, [Inference("a", "b", "neutral"), Inference("c", "d", "entailment")], 0)
    other = Examples(file, [Inference("A", "B", "neutral"), Inference("C", "D", "entailment")], 0)
    task = TASKS["nli"]
    assert task.mixed(one, other) == [Inference("a", "B", "neutral"), Inference("c", "D", "entailment")]
    assert task.mixed(one, Examples(file, other.examples[::-1], 0)) == []
    english = Examples(file, [Question("1", "who", "Ann is here", ["Ann"], [0])], 0)
    german = Examples(file, [Question("1", "wer", "Ann ist da", ["Ann"], [0]), Question("2", "wo", "x", ["x"], [0])], 0)
    assert TASKS["qa"].mixed(english, german) == [Question("1", "wer", "Ann is here", ["Ann"], [0])]
    # Answers are scored as those of the paragraph's language.
    lines = [{"answers": ["the Ann"], "predicted": "Ann"}]
    assert TASKS["qa"].score(lines, "en+de")["exact_match"] == 1.0
    assert TASKS["qa"].score(lines, "de+en")["exact_match"] == 0.0


def test_what_is_missing_is_named(data, model, tmp_path):
    with pytest.raises(UserError, match=r"has no training set of fr for nli; name one of de, en with --source"):
        scored("nli", data / "nli", model, tmp_path / "nli", source="fr")
    with pytest.raises(UserError, match=r"languages: .*nli has no test set of hi"):
        scored("nli", data / "nli", model, tmp_path / "nli", languages=["en", "hi"])


def test_damaged_predictions_are_named(data, model, tmp_path):
    output = tmp_path / "nli"
    options = FineTuningConfig(epochs=1, max_train=30, max_test=9)
    scored("nli", data / "nli", model, output, options)
    (output / "scores.json").unlink()
    (output / "predictions" / "xnli-de.jsonl").write_text('{"label": "neu')
    with pytest.raises(UserError, match=r"xnli-de\.jsonl: cannot be read as predictions"):
        scored("nli", data / "nli", model, output, options)
