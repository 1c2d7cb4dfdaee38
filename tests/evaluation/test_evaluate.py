import json
import shutil

import pytest
import torch

from tests import odd_offsets
from tests.evaluation.tiny_model import save_tiny_model
from unibert.errors import UserError
from unibert.evaluation.embeddings import SentenceEncoder
from unibert.evaluation.evaluate import EvaluateConfig, evaluate
from unibert.evaluation.retrieval import KINDS
from unibert.evaluation.score_table import retrieval_by_language

LANGUAGES = ("aa", "bb", "cc")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model and aligned files of three languages that translate word by word; cc uses bb's words."""
    root = tmp_path_factory.mktemp("evaluate")
    retrieval = root / "aligned"
    retrieval.mkdir()
    for language in LANGUAGES:
        prefix = "bb" if language == "cc" else language
        lines = [
            " ".join(f"{prefix}{(line * 7 + word * word * 3) % 40}" for word in range(2 + line % 4))
            for line in range(40)
        ]
        ending = f" {language}tail"
        (retrieval / f"{language}.txt").write_text("".join(line + ending + "\n" for line in lines))
    words = [f"{prefix}{number}" for prefix in ("aa", "bb") for number in range(40)]
    words += [f"{language}tail" for language in LANGUAGES]
    return save_tiny_model(root / "model", words, seed=5, initializer_range=0.2), retrieval


@pytest.fixture(scope="module")
def scores(folders):
    model, retrieval = folders
    return evaluate(EvaluateConfig(model=model, retrieval=retrieval, untrained=True, probe_restarts=1, device="cpu"))


def test_scores_json_is_what_is_returned_and_has_the_documented_form(folders, scores):
    output = folders[0].parent / "evaluation"
    assert json.loads((output / "scores.json").read_text()) == scores
    assert scores["num_layers"] == 4
    assert (scores["headline_layer"], scores["layer_chosen_by"]) == (3, "last layer")
    assert scores["data"]["sets"] == {"aligned": 40}
    assert scores["data"]["languages"] == list(LANGUAGES)
    assert scores["chance"] == {"retrieval": 1 / 40, "probe": pytest.approx(1 / 3)}
    for part in (scores["model"], scores["baseline"]):
        assert set(part["cka"]) == {"aa-bb", "aa-cc", "bb-cc"}
        for layer in "0123":
            values = [by_layer[layer] for by_layer in part["cka"].values()]
            assert part["cka_mean"][layer] == pytest.approx(sum(values) / 3)
        assert set(part["retrieval"]) == {f"{a}>{b}" for a in LANGUAGES for b in LANGUAGES if a != b}
        for layer in "0123":
            assert set(part["retrieval"]["aa>bb"][layer]) == {"raw", "centred", "margin"}
            assert set(part["probe"][layer]["centred"]["mlp"]) == {"mean", "std"}
            assert part["geometry"][layer]["variance"] > 0
    projections = json.loads((output / "projections.json").read_text())
    assert len(projections["baseline"]["centred"]["cc"]) == 40


def test_models_of_one_folder_keep_their_scores_apart(folders, scores, tmp_path):
    """A run's start, or another model beside its export, must not pass for the run's model."""
    model, retrieval = folders
    shutil.copytree(model.parent, tmp_path / "run")
    (tmp_path / "run" / "model").rename(tmp_path / "run" / "start")
    options = {"max_sentences": 10, "layers": [-1], "probe_restarts": 1, "device": "cpu"}
    of_start = evaluate(EvaluateConfig(model=tmp_path / "run" / "start", retrieval=retrieval, **options))
    assert json.loads((tmp_path / "run" / "evaluation-start" / "scores.json").read_text()) == of_start
    assert json.loads((tmp_path / "run" / "evaluation" / "scores.json").read_text()) == scores


def test_scores_distinguish_shared_words_from_different_ones(scores):
    retrieval = scores["model"]["retrieval"]
    assert retrieval["bb>cc"]["0"]["centred"] > 0.95
    assert retrieval["aa>bb"]["0"]["centred"] < 0.3
    assert scores["model"]["probe"]["2"]["raw"]["linear"]["mean"] > 0.8
    assert scores["model"]["cka"]["bb-cc"]["0"] > 0.9 > 0.5 > scores["model"]["cka"]["aa-bb"]["0"]


def test_the_baseline_is_another_model(scores):
    assert scores["baseline"]["geometry"] != scores["model"]["geometry"]
    assert scores["baseline"]["retrieval"].keys() == scores["model"]["retrieval"].keys()


def test_sets_too_small_for_cka_have_none(folders, tmp_path):
    model, _ = folders
    aligned = tmp_path / "aligned"
    aligned.mkdir()
    for language in ("aa", "bb"):
        (aligned / f"{language}.txt").write_text("".join(f"{language}{line} {language}tail\n" for line in range(3)))
    few = evaluate(EvaluateConfig(model=model, retrieval=aligned, layers=[-1], probe_restarts=1, output=tmp_path))
    assert (few["model"]["cka"], few["model"]["cka_mean"]) == ({"aa-bb": {"3": None}}, {"3": None})
    assert "| CKA of two languages          |       – |  0.000 |" in (tmp_path / "scores.md").read_text()


def test_a_language_is_scored_as_query_and_as_candidate():
    accuracy = {"de>en": (0.2, 0.4), "en>de": (0.4, 0.6), "fr>en": (0.6, 0.8)}
    part = {"retrieval": {pair: {"3": {"raw": raw, "centred": centred}} for pair, (raw, centred) in accuracy.items()}}
    means = retrieval_by_language(part, "3")
    assert means["de"] == {"raw": pytest.approx(0.3), "centred": pytest.approx(0.5)}
    assert means["en"] == {"raw": pytest.approx(0.4), "centred": pytest.approx(0.6)}
    assert means["fr"] == {"raw": 0.6, "centred": 0.8}


def test_the_table_is_printed_and_stored(folders, tmp_path, capsys):
    model, retrieval = folders
    evaluate(
        EvaluateConfig(
            model=model, retrieval=retrieval, output=tmp_path, max_sentences=20, probe_restarts=1, device="cpu"
        )
    )
    printed = capsys.readouterr().out
    assert (tmp_path / "scores.md").read_text().strip() == printed.strip()
    assert "20 aligned lines" in printed
    assert "retrieval centred" in printed
    assert "untrained" not in printed
    assert json.loads((tmp_path / "scores.json").read_text())["baseline"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "projections.json",
        "retrieval-predictions.jsonl",
        "scores.json",
        "scores.md",
    ]


@pytest.mark.skipif(odd_offsets.in_use(), reason="needs torch's own memory for equal bits")
def test_evaluation_is_reproducible(folders, tmp_path, scores):
    model, retrieval = folders
    again = EvaluateConfig(
        model=model, retrieval=retrieval, untrained=True, probe_restarts=1, device="cpu", output=tmp_path
    )
    assert evaluate(again) == scores


def test_named_layers_alone_are_scored_and_the_first_represents_the_model(folders, tmp_path, scores):
    model, retrieval = folders
    options = {"model": model, "retrieval": retrieval, "untrained": True, "probe_restarts": 1, "device": "cpu"}
    some = evaluate(EvaluateConfig(**options, layers=[-2, 0], output=tmp_path))
    assert (some["headline_layer"], some["layer_chosen_by"]) == (2, "named")
    for part in ("model", "baseline"):
        for key in ("retrieval_mean", "cka_mean", "probe", "geometry"):
            assert some[part][key] == {layer: scores[part][key][layer] for layer in "02"}
        assert some[part]["retrieval"]["aa>bb"] == {layer: scores[part]["retrieval"]["aa>bb"][layer] for layer in "02"}
    assert "The headline layer is 2 of 0-3, named in advance." in (tmp_path / "scores.md").read_text()
    with pytest.raises(UserError, match=r"layers: \[4\] must lie between -4 and 3, the last layer"):
        evaluate(EvaluateConfig(**options, layers=[4], output=tmp_path))


def test_accuracies_are_those_of_the_predictions(folders, scores):
    """At the layer that represents the model, in every direction."""
    predictions = folders[0].parent / "evaluation" / "retrieval-predictions.jsonl"
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert {line["direction"] for line in lines} == set(scores["model"]["retrieval"])
    for line in lines:
        found = {kind: sum(row == query for query, row in enumerate(line[kind])) for kind in KINDS}
        assert {kind: count / 40 for kind, count in found.items()} == scores["model"]["retrieval"][line["direction"]][
            "3"
        ]


def test_the_dev_set_of_the_pairs_chooses_the_layer_of_both(folders, scores, tmp_path):
    """The dev set's scores are the cosines of the embeddings."""
    model, retrieval = folders
    first, second = ([f"aa{number} aa{number * step % 40}" for number in range(30)] for step in (3, 7))
    vectors = SentenceEncoder.load(model).embed(first + second)[0].double()
    cosines = torch.cosine_similarity(vectors[:30], vectors[30:], dim=-1).tolist()
    pairs = tmp_path / "sts"
    pairs.mkdir()
    rows = "".join(f"{a},{b},{cosine}\n" for a, b, cosine in zip(first, second, cosines, strict=True))
    (pairs / "stsb-aa-dev.csv").write_text(rows)
    (pairs / "stsb-bb-test.csv").write_text("aa1,bb1,1\naa1,aa2,3\naa1,aa1,5\n")
    options = {"model": model, "retrieval": retrieval, "untrained": True, "probe_restarts": 1, "device": "cpu"}
    both = evaluate(EvaluateConfig(**options, sts=pairs, source="aa", output=tmp_path))
    of_pairs = json.loads((tmp_path / "sts.json").read_text())
    assert both["headline_layer"] == of_pairs["layer"] == 0
    assert both["layer_chosen_by"] == of_pairs["chosen_by"] == {"language": "aa", "split": "dev", "rows": 30}
    assert both["model"] == scores["model"]
    assert (
        "headline layer is 0 of 0-3, chosen on the 30 pairs of the aa dev set." in (tmp_path / "scores.md").read_text()
    )
    no_dev_set = evaluate(EvaluateConfig(**options, sts=pairs, source="bb", output=tmp_path))
    assert (no_dev_set["headline_layer"], no_dev_set["layer_chosen_by"]) == (3, "last layer")


def test_a_prompt_stands_before_every_sentence(folders, tmp_path):
    """Scores with it are those of sentences that begin with it."""
    model, retrieval = folders
    options = {"layers": [-1], "probe_restarts": 1, "device": "cpu"}
    prompted = evaluate(
        EvaluateConfig(model=model, retrieval=retrieval, prompt="aa3 bb5 ", output=tmp_path / "a", **options)
    )
    written = tmp_path / "aligned"
    written.mkdir()
    for file in retrieval.iterdir():
        lines = file.read_text().splitlines()
        (written / file.name).write_text("".join(f"aa3 bb5 {line}\n" for line in lines))
    plain = evaluate(EvaluateConfig(model=model, retrieval=written, output=tmp_path / "b", **options))
    assert prompted["model"]["retrieval"] == plain["model"]["retrieval"]
    assert (
        prompted["model"]["retrieval"]
        != json.loads((model.parent / "evaluation" / "scores.json").read_text())["model"]["retrieval"]
    )
    assert prompted["settings"]["prompt"] == "aa3 bb5 "


def test_languages_are_those_that_are_named(folders, tmp_path, scores):
    model, retrieval = folders
    options = {"model": model, "retrieval": retrieval, "probe_restarts": 1, "device": "cpu", "output": tmp_path}
    two = evaluate(EvaluateConfig(**options, languages=["cc", "aa"]))
    assert two["data"]["languages"] == ["aa", "cc"]
    assert two["model"]["retrieval"] == {pair: scores["model"]["retrieval"][pair] for pair in ("aa>cc", "cc>aa")}
    with pytest.raises(UserError, match=r"languages: .* has no dd beside another of aa, dd; leave it out"):
        evaluate(EvaluateConfig(**options, languages=["aa", "dd"]))
    with pytest.raises(ValueError, match="languages: name at least two"):
        EvaluateConfig(**options, languages=["aa"])


def test_mistakes_raise_one_sentence(folders, tmp_path):
    model, retrieval = folders
    with pytest.raises(UserError, match="--retrieval"):
        evaluate(EvaluateConfig(model=model))
    with pytest.raises(UserError, match="no such model folder"):
        evaluate(EvaluateConfig(model=tmp_path / "absent", retrieval=retrieval))
    with pytest.raises(UserError, match="device: nowhere"):
        evaluate(EvaluateConfig(model=model, retrieval=retrieval, device="nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        evaluate(
            EvaluateConfig(
                model=model, retrieval=retrieval, output=tmp_path / "file", max_sentences=10, probe_restarts=1
            )
        )
    with pytest.raises(ValueError, match=r"^max_sentences: must be at least 2"):
        EvaluateConfig(model=model, max_sentences=1)
