"""``unibert evaluate`` over several tasks."""

import json

import pytest

from tests.evaluation.tasks.inputs import save_model, write_ner, write_nli
from tests.refusals import refused
from unibert.cli import main

FEW = ["--fine_tuning.epochs=1", "--fine_tuning.max_train=30", "--fine_tuning.max_test=9", "--device=cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "sts").mkdir()
    (folder / "retrieval" / "tatoeba").mkdir(parents=True)
    for language, seed in (("en", 0), ("de", 10)):
        for split in ("train", "dev", "test"):
            write_ner(folder / "ner" / "panx" / language / f"{split}.tsv", 40, seed)
            write_nli(folder / "nli" / "xnli" / f"{split}-{language}.tsv", 40, seed + 1)
        lines = "".join(f"word{number % 12} word{number * 5 % 11} name{number % 7}\n" for number in range(40))
        (folder / "retrieval" / "tatoeba" / f"{language}.txt").write_text(lines)
    pairs = "".join(f"word{number % 12} name1,word{number % 9} name1,{number % 5}\n" for number in range(40))
    for split in ("dev", "test"):
        (folder / "sts" / f"stsb-en-{split}.csv").write_text(pairs)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("run") / "model")


def test_every_task_with_a_folder_is_scored(model, data, capsys):
    main(["evaluate", str(model), "--data", str(data), "--probe_restarts=1", "--untrained", *FEW])
    printed = capsys.readouterr().out
    folder = model.parent / "evaluation"
    for name in ("ner", "nli"):
        for kind in ("", "-untrained"):
            scores = json.loads((folder / f"{name}{kind}" / "scores.json").read_text())
            assert (scores["task"], scores["settings"]["max_test"]) == (name, 9)
    assert json.loads((folder / "sts.json").read_text())["sets"]
    assert json.loads((folder / "scores.json").read_text())["data"]["sets"]
    assert "| xnli de |" in printed
    assert "9 of 40" in printed
    assert printed.index("Named entity recognition") < printed.index("Natural language inference")
    assert (folder / "nli" / "scores.md").read_text() in printed
    # The last line of the table of named entities says what a model may have read.
    assert "Text of Wikipedia, which a model that was pre-trained on Wikipedia may have read: panx." in printed


def test_named_tasks_only(model, data, tmp_path, capsys):
    output = tmp_path / "out"
    main(["evaluate", str(model), "--data", str(data), "--tasks=nli", "--output", str(output), *FEW])
    assert [path.name for path in output.iterdir()] == ["nli"]
    capsys.readouterr()
    main(["evaluate", str(model), "--ner", str(data / "ner"), "--output", str(output), *FEW])
    assert {path.name for path in output.iterdir()} == {"ner", "nli"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is nothing to score"),
        (["--data=missing"], "data: there is no folder missing"),
        (["--tasks=qa", "--data=DATA"], "tasks: there is no folder for qa; name it with --qa"),
        (["--tasks=spelling", "--data=DATA"], "tasks"),
        (["--nli=DATA/sts"], "holds no file of a known layout for nli"),
        (["--nli=DATA/nli", "--center"], "has no means of languages; write them with unibert export"),
        (
            ["--nli=DATA/nli", "--center", "--prompt=x"],
            "center: the means are those of the last layer without a prompt",
        ),
        (["--nli=DATA/nli", "--fine_tuning.epochs=0"], "fine_tuning.epochs: must be at least 1, got 0"),
        (
            ["--nli=DATA/nli", "--fine_tuning.learning_rate=1e30", "--fine_tuning.batch_size=8", *FEW],
            "the loss of fine-tuning is not finite",
        ),
        (["--nli=DATA/nli", "--languages=de,xx"], "has no test set of xx"),
    ],
)
def test_mistakes_are_named(model, data, tmp_path, capsys, words, message):
    words = [word.replace("DATA", str(data)) for word in words]
    _, error = refused(capsys, "evaluate", model, "--output", tmp_path / "out", *words)
    assert message in error
