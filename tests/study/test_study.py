"""Studies: from the file to the report, and what is recomputed from the predictions."""

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.evaluation.tasks.inputs import FILLERS, save_model, write_ner, write_nli, write_qa
from tests.evaluation.tiny_model import save_tiny_model
from tests.refusals import refused
from unibert.cli import main
from unibert.errors import UserError
from unibert.language_means_file import save_language_means
from unibert.study.config import read_study
from unibert.study.report import write_report
from unibert.study.run import _part, _status
from unibert.study.scores import read_scores
from unibert.study.work import jobs_of

LANGUAGES = ("en", "de", "fr")


def write_vector_sets(folder: Path) -> None:
    """Aligned sentences and sentence pairs whose words are those of the model."""
    generator = random.Random(0)
    (folder / "retrieval").mkdir(parents=True)
    (folder / "sts").mkdir()
    for number, language in enumerate(LANGUAGES):
        # Each language has other words for half of what is said.
        words = FILLERS[4 * number :] + FILLERS[: 4 * number]
        lines = [
            " ".join([*random.Random(line).sample(FILLERS, 2), *random.Random(line).sample(words, 2)])
            for line in range(30)
        ]
        (folder / "retrieval" / f"{language}.txt").write_text("".join(f"{line}\n" for line in lines))
        pairs = [
            f"{' '.join(generator.sample(FILLERS, 3))},{' '.join(generator.sample(FILLERS, 3))}" for _ in range(30)
        ]
        text = "".join(f"{pair},{score % 5}\n" for score, pair in enumerate(pairs))
        (folder / "sts" / f"stsb-{language}-test.csv").write_text(text)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_vector_sets(folder)
    for language, seed in (("en", 0), ("de", 10), ("fr", 20)):
        for split in ("train", "dev", "test"):
            write_ner(folder / "ner" / "panx" / language / f"{split}.tsv", 30, seed)
            write_nli(folder / "nli" / "xnli" / f"{split}-{language}.tsv", 30, seed + 1)
            seed += 1
        write_qa(folder / "qa" / f"xquad.{language}.json", 10, seed)
    write_qa(folder / "qa" / "tydiqa.goldp.en.train.json", 30, 99)
    return folder


def study_of(folder: Path, data: Path, **changes) -> dict:
    few = {"fine_tuning": {"epochs": 1, "max_test": 10}, "device": "cpu"}
    study = {
        "output": str(folder / "study"),
        "seeds": [3, 4],
        "reference": "first",
        "arms": {
            "first": {"model": str(folder / "first")},
            "second": {"model": str(folder / "second"), "evaluate": {"fine_tuning": {"learning_rate": 0.002}}},
            "second-centred": {"like": "second", "center": True},
            "untrained": {"model": str(folder / "first"), "untrained": True},
        },
        "tasks": {
            **{task: {"data": str(data / task), **few} for task in ("ner", "nli", "qa")},
            "sts": {"data": str(data / "sts"), "layers": [-1], "device": "cpu"},
            "retrieval": {"data": str(data / "retrieval"), "layers": [-1], "probe_restarts": 1, "device": "cpu"},
        },
    }
    return study | changes


def write_study(folder: Path, study: dict) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


@pytest.fixture(scope="module")
def study_file(data, tmp_path_factory):
    """A study of finished models, all of whose commands have run in this process."""
    folder = tmp_path_factory.mktemp("study")
    save_model(folder / "first")
    words = [f"word{number}" for number in range(12)] + ["not", "in", "who"]
    second = save_tiny_model(
        folder / "second", [*words, *(f"name{n}" for n in range(8)), *(f"place{n}" for n in range(8))], seed=9
    )
    save_language_means(second, {code: torch.full((32,), 0.1 * number) for number, code in enumerate(LANGUAGES)})
    path = write_study(folder, study_of(folder, data))
    for job in jobs_of(read_study(path)):
        for item in job.items:
            if item.name == "weights":
                from unibert.study.fresh_weights import write_fresh_model

                write_fresh_model(item.command[3], int(item.command[4]), Path(item.command[5]))
            else:
                assert item.command[:3] == [sys.executable, "-m", "unibert"]
                main(item.command[3:])
            assert item.done
    return path


def test_the_report_has_every_arm_and_task(study_file, capsys):
    main(["study", "report", str(study_file)])
    printed = capsys.readouterr().out
    folder = study_file.parent / "study" / "report"
    content = json.loads((folder / "report.json").read_text())
    assert list(content["tasks"]) == ["ner", "nli", "qa", "sts", "retrieval", "retrieval centred"]
    assert content["arms"] == ["first", "second", "second-centred", "untrained"]
    assert set(content["comparisons"]) == {"second", "second-centred", "untrained"}
    assert (folder / "report.md").read_text() in printed + "\n"
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "second-centred against first" in page
    retrieval = content["tasks"]["retrieval"]["scores"]
    assert retrieval["second-centred"] != retrieval["second"]
    # Both subtract the means of the scored sentences.
    assert (
        content["tasks"]["retrieval centred"]["scores"]["second-centred"]
        == content["tasks"]["retrieval centred"]["scores"]["second"]
    )
    assert content["diagnostics"]["first"][0]["probe_chance"] == pytest.approx(1 / 3)


def test_scores_are_those_that_the_evaluation_has_written(study_file):
    study = read_study(study_file)
    scores = read_scores(study)
    folder = study.output / "second" / "seed-3" / "scores"
    for task in ("ner", "nli", "qa"):
        content = json.loads((folder / task / "scores.json").read_text())
        expected = [content["scores"][unit][content["metric"]] for unit in scores.tasks[task].units]
        assert scores.tasks[task].scores["second"].tolist() == [pytest.approx(expected, rel=1e-12)]
    sts = json.loads((folder / "sts.json").read_text())
    assert scores.tasks["sts"].scores["second"][0].mean() == pytest.approx(sts["mean"][str(sts["layer"])]["spearman"])
    retrieval = json.loads((folder / "scores.json").read_text())
    [headline] = retrieval["model"]["retrieval_mean"].values()
    assert scores.tasks["retrieval"].scores["second"].mean() == pytest.approx(headline["raw"])
    assert len(scores.tasks["nli"].examples["second"][0][0]) == 10
    assert np.mean(scores.tasks["nli"].examples["second"][0]) == scores.tasks["nli"].scores["second"][0, 0]


def test_the_report_is_the_same_when_it_is_computed_again(study_file):
    write_report(read_study(study_file))
    first = (study_file.parent / "study" / "report" / "report.json").read_bytes()
    write_report(
        read_study(study_file.parent / "study")
        if (study_file.parent / "study" / "study.yaml").is_file()
        else read_study(study_file)
    )
    assert (study_file.parent / "study" / "report" / "report.json").read_bytes() == first


@pytest.fixture
def own_study(study_file, tmp_path):
    """A copy whose files may be altered."""
    shutil.copytree(study_file.parent / "study", tmp_path / "study")
    return read_study(
        write_study(tmp_path, yaml.safe_load(study_file.read_text()) | {"output": str(tmp_path / "study")})
    )


def test_changed_predictions_are_found(own_study):
    path = own_study.output / "first" / "seed-3" / "scores" / "nli" / "predictions" / "xnli-de.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    right = lines[0]["label"] == lines[0]["predicted"]
    lines[0]["predicted"] = (
        ("neutral" if lines[0]["label"] != "neutral" else "entailment") if right else lines[0]["label"]
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        UserError, match=r"xnli-de\.jsonl: these predictions score .*one of the files is of another model"
    ):
        read_scores(own_study)


def test_scores_of_two_models_in_one_arm_are_found(own_study):
    scores = own_study.output / "first" / "seed-3" / "scores"
    shutil.copyfile(own_study.output / "second" / "seed-3" / "scores" / "sts.json", scores / "sts.json")
    shutil.copyfile(
        own_study.output / "second" / "seed-3" / "scores" / "sts-predictions.jsonl", scores / "sts-predictions.jsonl"
    )
    with pytest.raises(UserError, match=r"first/seed-3: ner and sts were scored with different models"):
        read_scores(own_study)


def test_what_is_not_scored_yet_is_named(own_study):
    (own_study.output / "second" / "seed-3" / "scores" / "qa" / "scores.json").unlink()
    with pytest.raises(UserError, match=r"qa/scores\.json is missing; run the study to its end first"):
        read_scores(own_study)


def test_one_line_says_what_is_left(own_study):
    jobs = jobs_of(own_study)
    assert _status(jobs) == "21 of 21 done"
    (own_study.output / "second" / "seed-3" / "scores" / "qa" / "scores.json").unlink()
    (own_study.output / "first" / "seed-3" / "scores" / "qa" / "scores.json").unlink()
    (own_study.output / "untrained" / "seed-3" / "scores" / "sts.json").unlink()
    assert _status(jobs) == "18 of 21 done; left: 2 × qa, 1 × sts"


def test_a_model_may_be_removed_when_it_is_scored(own_study):
    shutil.rmtree(own_study.output / "untrained" / "seed-3" / "model")
    jobs = jobs_of(own_study)
    assert _status(jobs) == "21 of 21 done"
    (own_study.output / "untrained" / "seed-3" / "scores" / "sts.json").unlink()
    assert _status(jobs) == "19 of 21 done; left: 1 × weights, 1 × sts"


def test_the_commands_of_an_arm(tmp_path, data):
    arms = {
        "mlm": {"run": {"adversary": None, "distillation": {"teacher": "t"}}},
        "centred": {"like": "mlm", "center": True, "evaluate": {"prompt": "query: ", "fine_tuning": {"epochs": 2}}},
    }
    study = read_study(write_study(tmp_path, study_of(tmp_path, data, run="tiny", reference="mlm", arms=arms)))
    jobs = jobs_of(study)
    assert [(job.items[0].arm, job.items[0].seed) for job in jobs] == [("mlm", 3), ("mlm", 4)]
    names = [item.name for item in jobs[0].items]
    assert names == ["pretrain", "means", *["ner", "nli", "qa", "sts", "retrieval"] * 2]
    first = jobs[0].items[0]
    assert first.command[1:] == [
        "-m",
        "unibert",
        "pretrain",
        "tiny",
        "--adversary=null",
        "--distillation.teacher=t",
        "--seed=3",
        f"--run_dir={tmp_path}/study/mlm/seed-3/run",
    ]
    centred = [item for item in jobs[0].items if item.arm == "centred"]
    by_task = {item.name: item.command for item in centred}
    assert f"{tmp_path}/study/mlm/seed-3/run/model" in by_task["nli"]
    assert {"--fine_tuning.epochs=2", "--fine_tuning.max_test=10", "--center=true"} <= set(by_task["nli"])
    # A prompt is for vectors; retrieval has a line with the means anyway.
    assert not any(word.startswith("--prompt") for word in by_task["nli"])
    assert "--prompt=query: " in by_task["retrieval"]
    assert "--center=true" not in by_task["retrieval"]


def test_parts_share_the_jobs():
    jobs = list(range(7))
    parts = [_part(jobs, f"{index}/3") for index in range(3)]
    assert sorted(job for part in parts for job in part) == jobs
    for wrong in ("3/3", "x", "1"):
        with pytest.raises(UserError, match="part: must be K/N"):
            _part(jobs, wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed: is no key of a study"),
        ({"seeds": [1, 1]}, "seeds: must be a list of different whole numbers"),
        ({"reference": "third"}, "reference: third is none of the arms"),
        ({"arms": {"first": {"runs": {}}}}, "arms.first.runs: is no key of an arm"),
        ({"arms": {"first": {"run": {}, "model": "x"}}}, "arms.first: has more than one of run, like and model"),
        ({"arms": {"first": {"run": {"adversary": None}}}}, "run: is missing, and arms.first trains"),
        ({"arms": {"first": {"like": "none"}}}, "arms.first.like: none is no arm with a run of its own"),
        ({"arms": {"first": {"untrained": True}}}, "arms.first.untrained: needs a model"),
        ({"arms": {"a/b": {"model": "x"}}}, "arms.a/b: an arm's name has letters"),
        ({"run": "tiny", "arms": {"first": {"run": {"advrsary": None}}}}, "advrsary"),
        ({"tasks": {"nli": {}}}, "tasks.nli.data: is missing"),
        ({"tasks": {"spelling": {"data": "x"}}}, "tasks.spelling: is none of ner, nli, qa, sts, retrieval"),
        ({"tasks": {"nli": {"data": "x", "fine_tunning": {}}}}, "fine_tunning"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, data, capsys, changes, message):
    path = write_study(tmp_path, study_of(tmp_path, data, **changes))
    _, error = refused(capsys, "study", path)
    assert message in error
