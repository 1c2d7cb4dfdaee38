"""``unibert corpus tokenizers`` from the command line."""

import csv
import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.refusals import refused
from unibert.cli import main
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig
from unibert.corpus.manifest import Manifest
from unibert.corpus.tokenizer import load_tokenizer, train_tokenizer
from unibert.demo.alignment import WIKI
from unibert.stream import StreamConfig
from unibert.stream.reader import read_blocks
from unibert.stream.source import ShardSource

SIZES = (1400, 2000)


def build(output: Path, **changes: object) -> Path:
    settings: dict[str, object] = {"languages": ["de", "en", "zh"], "vocab_size": 1500, "heldout_share": 0.2} | changes
    build_corpus(CorpusConfig(inputs=[str(WIKI)], output=str(output), workers=1, **settings))
    return output


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("sizes") / "corpus")


@pytest.fixture(scope="module")
def output(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sizes") / "output"
    main(["corpus", "tokenizers", str(corpus), "--sizes", ",".join(map(str, SIZES)), "--output", str(folder)])
    return folder


def test_scores_are_those_of_the_tokenizers_on_held_out_text(corpus, output):
    rows = json.loads((output / "tokenizers.json").read_text())
    assert [(row["vocab_size"], row["language"]) for row in rows] == [
        (size, code) for size in SIZES for code in ("de", "en", "zh")
    ]
    report = json.loads((corpus / "report.json").read_text())["languages"]
    for row in rows:
        processor = load_tokenizer(output / str(row["vocab_size"]))
        assert processor.GetPieceSize() == row["vocab_size"]
        assert row["tokens_per_word"] == row["tokens"] / row["words"]
        assert row["tokens_per_character"] == row["tokens"] / row["characters"]
        assert 0 <= row["byte_tokens"] < row["tokens"]
        # The held-out text is a fifth of the documents, or so.
        assert row["characters"] < report[row["language"]]["characters"] / 2
    for small, large in zip(rows[:3], rows[3:], strict=True):
        assert large["tokens"] < small["tokens"]
        assert (large["words"], large["characters"]) == (small["words"], small["characters"])
    with (output / "tokenizers.csv").open(encoding="utf-8", newline="") as file:
        assert [int(row["tokens"]) for row in csv.DictReader(file)] == [row["tokens"] for row in rows]
    assert (imread(output / "tokenizers.png").std(axis=(0, 1))[:3] > 0.05).all()
    assert (output / "tokenizers.svg").is_file()


def test_the_training_text_is_the_train_split(corpus, output):
    """Texts of all languages fit into the limit here."""
    manifest, source = Manifest.load(corpus), ShardSource(corpus, StreamConfig())
    tokenizer = load_tokenizer(corpus)
    lines = [
        tokenizer.Decode(document.tolist())
        for code in manifest.languages
        for shard in manifest.shards_of(code)
        for block in read_blocks(source, shard, manifest.vocab_size)
        for document in block.documents()
    ]
    assert (output / "1400" / "sentencepiece.model").read_bytes() == train_tokenizer(lines, vocab_size=1400)


def test_a_corpus_takes_one_of_them(output, tmp_path):
    """Its tokens of held-out text are as many as the comparison says."""
    corpus = build(tmp_path / "corpus", tokenizer=str(output / "2000"))
    counted = {row["language"]: row for row in json.loads((output / "tokenizers.json").read_text())[3:]}
    report = json.loads((corpus / "report.json").read_text())["languages"]
    for code, entry in report.items():
        # Line breaks, which the comparison reads as spaces, change no piece: words and pieces begin there alike.
        assert entry["heldout_tokens"] == counted[code]["tokens"]


def test_the_table_and_limits(corpus, output, tmp_path, capsys):
    words = ["corpus", "tokenizers", str(corpus), "--sizes", "1400", "--output", str(tmp_path / "out")]
    main([*words, "--heldout_bytes", "1", "--train_bytes", "40000"])
    table = capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "tokenizers.json").read_text())
    whole = json.loads((output / "tokenizers.json").read_text())
    assert all(row["characters"] < all_of_it["characters"] for row, all_of_it in zip(rows, whole[:3], strict=True))
    for row, name in zip(rows, ("de German", "en English", "zh Chinese"), strict=True):
        [line] = [line for line in table.split("\n") if line.startswith(name)]
        assert f"{row['tokens_per_word']:.2f}" in line
        assert f"{1 / row['tokens_per_character']:.2f}" in line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sizes", "100"], "sizes: give vocabulary sizes of at least 300"),
        (["--sizes", "900000"], "vocab_size: 900000 pieces are more than the text allows"),
        (["--train_bytes", "0"], "train_bytes: must be positive"),
        (["--exponent", "2"], "exponent: must lie between 0 and 1"),
    ],
)
def test_mistakes(words, sentence, corpus, tmp_path, capsys):
    assert sentence in refused(capsys, "corpus", "tokenizers", corpus, "--output", tmp_path / "out", *words)[1]


def test_a_corpus_without_held_out_documents(tmp_path, capsys):
    corpus = build(tmp_path / "corpus", heldout_share=0.0)
    capsys.readouterr()
    sentence = refused(capsys, "corpus", "tokenizers", corpus, "--output", tmp_path / "out")[1]
    assert "has no held-out documents; build it with heldout_share above 0" in sentence
