"""``unibert corpus inspect`` from the command line."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from tests.refusals import refused
from unibert.cli import main
from unibert.corpus.manifest import Manifest, Shard
from unibert.languages import LANGUAGES

RUN = """
run_dir: runs/here
corpus: {corpus}
training: {{tokens: 40_000, global_batch_size: 8, sequence_length: 64}}
stream: {{lanes: 4, window_shards: 1, sampling_exponent: [[0, 1], [0.5, 1], [0.5, 0.3]]}}
"""


def write_manifest(folder: Path, tokens: dict[str, list[int]]) -> Path:
    """Write only a manifest: train shards of these sizes in documents of 50 tokens, and one held-out shard."""
    folder.mkdir()
    shards = [
        Shard(
            path=f"{language}/{split}-{number:06d}.tar",
            language=language,
            split=split,
            documents=max(1, size // 50),
            blocks=1,
            tokens=size,
            text_bytes=4 * size,
            size_bytes=2 * size + 1024,
            sha256="0" * 64,
        )
        for language, sizes in tokens.items()
        for number, (split, size) in enumerate([("train", size) for size in sizes] + [("heldout", 100)])
    ]
    Manifest(shards=tuple(shards), vocab_size=500, token_dtype="uint16", tokenizer_sha256="", unigram_entropy={}).save(
        folder
    )
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "corpus", {"da": [200], "fi": [500, 500], "sv": [900, 1000, 1100, 1000]})


@pytest.fixture
def run_file(corpus: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(corpus=corpus))
    return path


def inspect(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    main(["corpus", "inspect", *map(str, words)])
    return capsys.readouterr().out


def row_of(text: str, language: str) -> list[str]:
    """Return the words of a language's last line."""
    return [line.split() for line in text.splitlines() if line.startswith(f"{language} ")][-1]


def test_content_of_a_corpus(corpus, capsys):
    text = inspect(capsys, corpus)
    words = " ".join(text.split())
    assert "languages 3, 3 of them among UniBERT's 107" in words
    assert "documents 104, and 6 held out (5.45% of all)" in words
    assert "tokens 5,200, and 300 held out (5.45% of all)" in words
    assert "shards 7, and 3 of held-out documents; 21.2 kB in total" in words
    assert "train shards 200 to 1,100 tokens, median 900" in words
    assert "vocabulary 500 pieces, stored as uint16" in words
    assert "smallest da 200, fi 1,000, sv 4,000 tokens" in words
    assert "1 language is read completely with every draw: da" in words
    assert row_of(text, "sv") == ["sv", "Swedish", "80", "4,000", "76.9%", "50", "4.00", "4", "900/1,000/1,100", "2"]
    assert "epochs" not in text


def test_forecast_of_a_run(corpus, run_file, tmp_path, capsys):
    text = inspect(capsys, "--run", run_file, "--output", tmp_path / "out", "--stream.max_epochs", "15")
    assert text == inspect(
        capsys, corpus, "--run", run_file, "--stream.max_epochs", "15", "--output", tmp_path / "again"
    ).replace("again", "out")
    content = json.loads((tmp_path / "out" / "inspect.json").read_text())
    with (tmp_path / "out" / "inspect.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["language"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["sv", "fi", "da"] == [row["language"] for row in content["languages"]]
    run = content["run"]
    assert sum(row["run_tokens"] for row in content["languages"]) == run["tokens"] == 40_448
    assert [(phase["start"], phase["end"]) for phase in run["phases"]] == [(0, 0.5), (0.5, 1)]
    assert sum(phase["tokens"] for phase in run["phases"]) == run["tokens"]
    for row in content["languages"]:
        assert float(rows[row["language"]]["epochs"]) == row["epochs"] == row["epochs_1"] >= row["epochs_0.5"]
        *_, planned, share_1, share_2, epochs_1, epochs_2, mark = row_of(text, row["language"])
        for cell, key in ((planned, "run_share"), (share_1, "share_0_0.5"), (share_2, "share_0.5_1")):
            assert float(cell.rstrip("%")) == pytest.approx(100 * row[key], abs=0.05)
        for cell, key in ((epochs_1, "epochs_0.5"), (epochs_2, "epochs")):
            assert float(cell) == pytest.approx(row[key], abs=0.05)
        assert mark == "*"
    assert run["reached_max_epochs"] == {"da": pytest.approx(float(rows["da"]["reached_max_epochs"]))}
    assert run["epochs_above_4"]["da"] == 15
    words = " ".join(text.split())
    reached = f"{100 * run['reached_max_epochs']['da']:.3g}%"
    assert f"1 language is read 15 times before the run ends and then left out: da at {reached}" in words
    assert "3 languages are read more than 4 times, marked *: da 15.0" in words
    assert "arXiv 2305.16264" in words
    assert "mix at most" not in words
    for picture in ("inspect.png", "inspect.svg"):
        assert (tmp_path / "out" / picture).read_bytes() == (tmp_path / "again" / picture).read_bytes()
    assert (imread(tmp_path / "out" / "inspect.png").std(axis=(0, 1))[:3] > 0.1).all()


def test_corpus_and_overrides_replace_those_of_the_run_file(run_file, tmp_path, capsys):
    other = write_manifest(tmp_path / "other", {"sv": [400] * 9, "nn": [300] * 9})
    text = inspect(
        capsys, other, "--run", run_file, "--stream.languages=[sv]", "--stream.lanes=1", "--training.tokens", "1000"
    )
    assert row_of(text, "sv")[0:4] == ["sv", "Swedish", "1,024", "100.0%"]
    assert "* " not in text
    assert text.count("nn Norwegian Nynorsk") == 1, "only in the table of the corpus"
    text = inspect(capsys, other, "--run", "demo", "--stream.lanes=1", "--stream.window_shards=1")
    assert "1 lanes of 1 shards mix at most 1 of the corpus's 2 languages at a time" in " ".join(text.split())


def test_tables_of_107_languages_fit_the_page(tmp_path, capsys):
    known = [code for code, language in LANGUAGES.items() if language.in_107]
    sizes = {code: [10_000_000 // (1 + rank) ** 2] * (1 + rank % 3) for rank, code in enumerate(known)}
    sizes[known[-1]] = [7]
    corpus = write_manifest(tmp_path / "corpus", sizes)
    text = inspect(
        capsys,
        corpus,
        "--run",
        "tiny",
        "--training.tokens=200_000_000",
        "--stream.max_epochs=1200",
        "--stream.language_starts.zh=0.3",
        "--training.sequence_length=[[0, 128], [0.7, 512]]",
    )
    assert "epochs by the end of phase" in text
    assert row_of(text, "nn")[1][0].isdigit(), "no room for the name"
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{corpus}/nowhere"], "manifest.json: no such file; build the corpus with `unibert corpus build` first"),
        ([], "corpus inspect needs a corpus folder, or a run file that names one"),
        (["{corpus}", "--seed", "3"], "--seed: this overrides a run; name its file or preset with --run"),
        (["{corpus}", "--run", "nothing"], "nothing: no such run file, and no preset of that name"),
        (["--run", "{run}", "--stream.lane=2"], "unknown key 'stream.lane'; did you mean 'stream.lanes'?"),
        (["--run", "{run}", "--output", "{run}"], "run.yaml: the inspection cannot be written (File exists)"),
    ],
)
def test_mistakes(corpus, run_file, capsys, words, sentence):
    assert (
        sentence
        in refused(capsys, "corpus", "inspect", *(word.format(corpus=corpus, run=run_file) for word in words))[1]
    )


def test_a_language_missing_from_the_corpus(run_file, capsys):
    printed, sentence = refused(capsys, "corpus", "inspect", "--run", run_file, "--stream.languages=[da, nn]")
    assert "stream.languages: the corpus has no train shards of 'nn'; it has da, fi, sv" in sentence
    assert row_of(printed, "da")[1] == "Danish"


def test_a_shortage_is_reported_after_the_tables(run_file, tmp_path, capsys):
    printed, sentence = refused(
        capsys, "corpus", "inspect", "--run", run_file, "--stream.max_epochs=2", "--output", tmp_path / "out"
    )
    assert "stream.max_epochs: with every language read at most 2 times, one of the 4 lanes gets only" in sentence
    assert "epochs by the end of phase" in printed
    assert json.loads((tmp_path / "out" / "inspect.json").read_text())["run"]["shortage"] in sentence
