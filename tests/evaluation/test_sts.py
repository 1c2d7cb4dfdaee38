"""Correlation of vectors with human scores of similarity."""

import gzip
import json
import lzma
from pathlib import Path

import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from tests.evaluation.tiny_model import save_tiny_model
from unibert.errors import UserError
from unibert.evaluation.config import EvaluateConfig
from unibert.evaluation.embeddings import SentenceEncoder
from unibert.evaluation.evaluate import evaluate
from unibert.evaluation.layers import named_layers
from unibert.evaluation.sentence_pairs import read_pairs
from unibert.evaluation.sts import score_pairs

WORDS = [f"w{number}" for number in range(40)]


def rows(count: int, seed: int) -> list[tuple[str, str, float]]:
    """Sentences of six words, of which some are shared; the score is their number."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        words = [WORDS[index] for index in torch.randperm(40, generator=generator)[:12].tolist()]
        shared = number % 7
        second = words[:shared] + words[6 : 12 - shared]
        found.append((" ".join(words[:6]), " ".join(second), float(shared)))
    return found


def csv(table) -> str:
    return "".join(f"{first},{second},{score}\n" for first, second, score in table)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("run") / "model", WORDS, seed=5)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "sts"
    (folder / "multi").mkdir(parents=True)
    (folder / "korsts").mkdir()
    with lzma.open(folder / "multi" / "stsb-en-dev.csv.xz", "wt") as file:
        file.write(csv(rows(80, 0)))
    with gzip.open(folder / "multi" / "stsb-de-test.csv.gz", "wt") as file:
        file.write(csv(rows(60, 1)))
    (folder / "multi" / "stsb-de-train.csv").write_text("never read")
    header = "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2\n"
    korean = "".join(f"news\tf\t2012\t1\t{score}\t{first}\t{second}\n" for first, second, score in rows(50, 2))
    (folder / "korsts" / "sts-test.tsv").write_text(f'{header}{korean}news\tf\t2012\t1\t\tno "score\t\n')
    return folder


def test_sets_are_recognised(folder):
    found = {(pairs.language, pairs.split): pairs for pairs in read_pairs(folder, "en")}
    assert {key: len(pairs) for key, pairs in found.items()} == {
        ("de", "test"): 60,
        ("en", "dev"): 80,
        ("ko", "test"): 50,
    }
    german, korean = found["de", "test"], found["ko", "test"]
    assert list(zip(german.first, german.second, german.scores, strict=True)) == rows(60, 1)
    assert list(zip(korean.first, korean.second, korean.scores, strict=True)) == rows(50, 2)
    assert (german.left_out, korean.left_out) == (0, 1)
    assert korean.file == "korsts/sts-test.tsv"


def test_scores_are_those_of_the_predictions(folder, model, tmp_path, capsys):
    evaluate(EvaluateConfig(model=model, sts=folder, output=tmp_path, device="cpu"))
    content = json.loads((tmp_path / "sts.json").read_text())
    predictions = [json.loads(line) for line in (tmp_path / "sts-predictions.jsonl").read_text().splitlines()]
    layer = str(content["layer"])
    for language, table in (("de", rows(60, 1)), ("ko", rows(50, 2))):
        lines = [line for line in predictions if line["language"] == language]
        assert [line["row"] for line in lines] == list(range(len(table)))
        assert [line["score"] for line in lines] == [score for *_, score in table]
        cosines, scores = zip(*((line["cosine"], line["score"]) for line in lines), strict=True)
        assert content["scores"][language][layer] == {
            "spearman": spearmanr(cosines, scores).statistic,
            "pearson": pearsonr(cosines, scores).statistic,
        }
        assert content["scores"][language][layer]["spearman"] > 0.5  # shared words
    printed = capsys.readouterr().out
    assert f"Layer {layer}, chosen on the 80 pairs of the en dev set" in printed
    assert printed.strip() == (tmp_path / "sts.md").read_text().strip()


def test_the_layer_is_chosen_on_the_source_language_alone(folder, model, tmp_path):
    """The best layer of the dev set, whatever the test sets hold."""
    encoder = SentenceEncoder.load(model)
    first, second, scores = zip(*rows(80, 0), strict=True)
    cosines = torch.cosine_similarity(encoder.embed(first).double(), encoder.embed(second).double(), dim=-1)
    by_layer = [spearmanr(row, scores).statistic for row in cosines.numpy()]
    best = max(range(4), key=by_layer.__getitem__)
    for number in range(2):
        evaluate(EvaluateConfig(model=model, sts=folder, output=tmp_path, device="cpu"))
        content = json.loads((tmp_path / "sts.json").read_text())
        assert content["layer"] == best
        # Reversed scores would turn a choice by the test set around.
        reversed_scores = csv((a, b, 6 - score) for a, b, score in rows(60, 1))
        (folder / "multi" / "stsb-de-test.csv.gz").write_bytes(gzip.compress(reversed_scores.encode()))
        if number:
            assert content["scores"]["de"][str(best)]["spearman"] < 0


@pytest.mark.parametrize(
    ("options", "layer", "chosen_by", "languages"),
    [
        ({"layers": [-1, 0]}, 3, "named", ["de", "ko"]),
        ({"source": "fr"}, 3, "last layer", ["de", "ko"]),
        ({"languages": ["ko"], "max_pairs": 20}, None, {"language": "en", "split": "dev", "rows": 20}, ["ko"]),
    ],
)
def test_options(options, layer, chosen_by, languages, folder, model, tmp_path):
    evaluate(EvaluateConfig(model=model, sts=folder, output=tmp_path, device="cpu", **options))
    content = json.loads((tmp_path / "sts.json").read_text())
    assert content["chosen_by"] == chosen_by
    assert layer in (None, content["layer"])
    assert list(content["scores"]) == languages


def test_vectors_that_are_all_alike_have_no_correlation(folder, model, tmp_path):
    same = "".join(f"w1 w2,w1 w2,{number}\n" for number in range(5))
    (folder / "multi" / "stsb-de-test.csv.gz").write_bytes(gzip.compress(same.encode()))
    evaluate(EvaluateConfig(model=model, sts=folder, output=tmp_path, device="cpu"))
    content = json.loads((tmp_path / "sts.json").read_text())
    assert set(content["scores"]["de"]["3"].values()) == {None}
    assert set(content["mean"]["3"].values()) == {None}


def test_other_files_are_described_by_a_list(folder):
    (folder / "sick.tsv").write_text("id\tA\tB\trelated\n1\tw1\tw2\t3\n2\tw3\tw4\t4\n")
    entry = "{file: sick.tsv, language: en, split: test, columns: [A, B, related]}"
    (folder / "sts.yaml").write_text(
        f"- {entry}\n- {{file: plain.csv, language: fr, split: test, columns: [1, 2, 0]}}\n"
    )
    (folder / "plain.csv").write_text('3,"a, b",c\n4,d,e\n')
    found = {(pairs.language, pairs.split): pairs for pairs in read_pairs(folder, "en", ["en", "fr"])}
    assert found["en", "test"].first == ["w1", "w3"]
    assert found["fr", "test"].first == ["a, b", "d"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("multi/stsb-fr-test.csv", "a,b\n", "its first row has no columns sentence1, sentence2, score; name its"),
        ("multi/stsb-fr-test.csv", "a,b,1\nc,d,none\n", "has fewer than two rows with two sentences and a score"),
        ("multi/stsb-fr-test.csv.xz", "a,b,1\n", "cannot be read as sentence pairs"),
        ("other/stsb-de-test.csv", "a,b,1\nc,d,2\n", "are both test sets of de; keep one of them"),
        ("sts.yaml", "- {file: a.csv}\n", "is no list of sets with file, language, split and columns"),
        ("sts.yaml", "- {file: absent.csv, language: fr, split: test}\n", "absent.csv: cannot be read"),
    ],
)
def test_mistakes(file, text, message, folder):
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read_pairs(folder, "en")


def test_folders_without_test_sets(folder, tmp_path):
    with pytest.raises(UserError, match=r"no such folder; name one with pairs of sentences"):
        read_pairs(tmp_path / "absent", "en")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no test set: it needs stsb-CODE-test\.csv"):
        read_pairs(tmp_path / "empty", "en")
    with pytest.raises(UserError, match=r"languages: .* has no test set of fr; leave it out"):
        read_pairs(folder, "en", ["de", "fr"])


def test_the_published_sets(shared_data):
    """Every row of stsb-multi-mt and KorSTS has two sentences and a score."""
    found = read_pairs(shared_data / "eval" / "sts", "en")
    tests = {pairs.language: pairs for pairs in found if pairs.split == "test"}
    assert sorted(tests) == ["de", "en", "es", "fr", "it", "ko", "pl", "ru", "zh"]
    assert {len(pairs) for pairs in tests.values()} == {1379}
    assert not any(pairs.left_out for pairs in found)
    assert tests["ko"].scores == tests["de"].scores


def test_centring_subtracts_the_mean_of_the_language(model, folder):
    encoder = SentenceEncoder.load(model)
    sets = read_pairs(folder, "en", ["de"])
    [tested] = [pairs for pairs in sets if pairs.split == "test"]
    mean = torch.linspace(-3, 3, 32)
    layers = named_layers([-1], encoder.num_layers)
    scores, predictions = score_pairs(encoder, sets, layers=layers, max_pairs=60, means={"de": mean})
    first, second = (encoder.embed(texts)[-1] - mean for texts in (tested.first, tested.second))
    cosines = torch.nn.functional.cosine_similarity(first, second)
    # float32 against float64: cosines of vectors of 32 entries.
    assert [line["cosine"] for line in predictions] == pytest.approx(cosines.tolist(), abs=1e-5)
    assert scores["scores"]["de"] != score_pairs(encoder, sets, layers=layers, max_pairs=60)[0]["scores"]["de"]
    with pytest.raises(UserError, match="no test set has a language with a mean"):
        score_pairs(encoder, sets, layers=layers, max_pairs=60, means={"fr": mean})
