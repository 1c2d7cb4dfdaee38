"""``unibert corpus show`` from the command line."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from tests.corpus.inputs import page_xml, sentences, write_dump, write_jsonl
from tests.refusals import refused
from unibert.cli import main
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig
from unibert.corpus.shards import add_member

TEXTS = sentences(40)
LOST = "the water wheel that stood beside the house"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    pages = [
        page_xml(5, "Umweg", "#REDIRECT [[Mühle]]", redirect="Mühle"),
        page_xml(6, "Diskussion", "x", ns=1),
        page_xml(7, "Kurz", "Zu kurz."),
        page_xml(8, "Mühle", f"'''{TEXTS[0]}'''{{{{x|y}}}}\n\n{TEXTS[1]} [[Datei:x.jpg|thumb {LOST}\n\n{TEXTS[2]}"),
        page_xml(9, "Kopie", f"{TEXTS[3]}\n\n{TEXTS[4]}"),
        page_xml(10, "Kopie 2", f"{TEXTS[3]}\n{TEXTS[4]}"),
        *(page_xml(20 + n, f"Titel {n}", TEXTS[10 + n] * 20) for n in range(4)),
        page_xml(30, "Auch kurz", "Kurz."),
    ]
    write_dump(folder / "dewiki.xml.bz2", *pages)
    write_jsonl(
        folder / "af.jsonl", [{"id": str(n), "text": f"{text}\x1b[31m\n\n{text}x"} for n, text in enumerate(TEXTS)]
    )
    return folder


def shown(capsys, *words):
    main(["corpus", "show", *map(str, words)])
    return capsys.readouterr().out


def test_a_page_before_and_after_cleaning(inputs, capsys):
    text = shown(capsys, inputs, "--title", "mühle", "--language", "de")
    lines = text.splitlines()
    assert lines[0] == "Mühle (id 8, de, dewiki.xml.bz2)"
    assert lines[1].startswith("kept; ")
    assert "visible prose kept: " in lines[1]
    assert "visible prose kept: 100" not in lines[1]
    source, cleaned = text.split("\nsource\n")[1].split("\ntext\n")
    assert f"'''{TEXTS[0]}'''{{{{x|y}}}}" in source
    assert TEXTS[0] in cleaned.splitlines()
    assert "{{" not in cleaned
    assert "\x1b" not in text
    assert text == shown(capsys, inputs, "--title", "8", "--language", "de")


def test_what_of_the_visible_prose_is_lost(inputs, capsys):
    text = shown(capsys, inputs, "--title", "Mühle", "--diff")
    assert f"{TEXTS[1]} [-Datei:x.jpg|thumb {LOST}-]\n" in text
    assert TEXTS[2] not in text
    assert "Nothing of the visible prose is lost." in shown(capsys, inputs, "--title", "Titel 1", "--diff")
    assert "Not an article of a dump" in shown(capsys, inputs / "af.jsonl", "--number", 1, "--diff")


def test_documents_of_each_language(inputs, capsys):
    text = shown(capsys, inputs, "--number", 2)
    assert [line for line in text.splitlines() if "(id" in line] == [
        "Mühle (id 8, de, dewiki.xml.bz2)",
        "Kopie (id 9, de, dewiki.xml.bz2)",
    ]
    assert [line for line in text.splitlines() if line.startswith("id ")] == [
        "id 0, af, af.jsonl",
        "id 1, af, af.jsonl",
    ]
    assert "Dropped among these: not_an_article 1, redirect 1, too_short 1; --dropped REASON shows them" in text
    long = shown(capsys, inputs, "--language", "de", "--number", 3)
    assert "more characters; --title shows all" in long
    assert "--title shows all" not in shown(capsys, inputs, "--title", "Titel 0")


def test_samples_of_what_is_dropped(inputs, capsys):
    text = shown(capsys, inputs, "--dropped", "all", "--number", 1, "--language", "de")
    assert [line.split(" (id")[0] for line in text.splitlines() if " (id" in line] == [
        "Umweg",
        "Diskussion",
        "Kurz",
        "Kopie 2",
    ]
    assert [line.split(";")[0] for line in text.splitlines() if line.startswith("dropped: ")] == [
        "dropped: redirect",
        "dropped: not_an_article",
        "dropped: too_short",
        "dropped: duplicate",
    ]
    assert shown(capsys, inputs, "--dropped", "too_short").count("dropped: too_short") == 2
    strict = shown(capsys, inputs, "--dropped", "too_short", "--filters.min_letters", 200, "--language", "af")
    assert strict.count("dropped: too_short") == 3


def test_control_characters_of_a_text_do_not_reach_the_terminal(inputs, capsys):
    text = shown(capsys, inputs / "af.jsonl", "--number", 1)
    assert "\x1b" not in text
    assert "\N{REPLACEMENT CHARACTER}[31m" in text


def test_a_terminal_has_columns_and_colours(inputs, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    words = (inputs, "--title", "Mühle")
    wide = shown(capsys, *words)
    assert "\x1b[1mMühle (id 8" in wide
    assert " │ " in wide
    assert max(map(len, wide.splitlines())) <= 120
    assert "\x1b[31m[-" in shown(capsys, *words, "--diff")
    monkeypatch.setenv("COLUMNS", "80")
    assert "│" not in shown(capsys, *words)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(capsys, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--title", "Titl 1"], "title: {inputs} has no document 'Titl 1'; did you mean 'Titel 1' or "),
        (["--title", "Xylophon"], "has no document 'Xylophon'\n"),
        (["--language", "ed"], "language: {inputs} has no document in ed; it has af, de; did you mean 'de'?"),
        (["--dropped", "tooshort"], "dropped: no document is dropped for 'tooshort'; dropped are: duplicate 1, "),
        (["--filters.min_letters", "99999"], "no document is kept; dropped are: not_an_article 1, "),
        (["--number", "0"], "number: must be at least 1"),
        (["--title", "x", "--dropped", "all"], "dropped: shows samples"),
    ],
)
def test_mistakes(words, message, inputs, capsys):
    _, error = refused(capsys, "corpus", "show", inputs, *words)
    assert message.format(inputs=inputs) in error


def test_a_pipe_may_be_closed_early(inputs):
    command = f"{sys.executable} -m unibert corpus show {inputs} --number 40 --language af | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=os.environ)
    assert done.stdout == "id 0, af, af.jsonl\n"
    assert done.stderr == ""


# ---- a corpus ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "corpus"
    build_corpus(CorpusConfig(inputs=[str(inputs)], output=str(folder), vocab_size=400, workers=1))
    return folder


def test_documents_of_a_corpus_have_their_lines(corpus, capsys):
    text = shown(capsys, corpus, "--title", 9, "--language", "de")
    assert text.splitlines()[0] in ("id 9, de, train", "id 9, de, heldout")
    assert text.endswith(f"\n\n{TEXTS[3]}\n{TEXTS[4]}\n\n")
    several = shown(capsys, corpus, "--language", "de", "--number", 2).splitlines()
    assert sum(line.endswith("de, train") for line in several) == 2
    assert sum(line.endswith("de, heldout") for line in several) == 1


def test_an_old_corpus_has_no_lines(corpus, capsys, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(corpus, old)
    for shard in old.glob("*/*.tar"):
        with tarfile.open(shard) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        with tarfile.open(shard, "w") as tar:
            for name, content in members.items():
                if name.endswith(".json"):
                    content = json.dumps({key: json.loads(content)[key] for key in ("ids", "crc32")}).encode()
                if not name.endswith(".lines.npy"):
                    add_member(tar, name, content)
    text = shown(capsys, old, "--title", 9, "--language", "de")
    assert f"\n{TEXTS[3]} {TEXTS[4]}\n" in text
    assert text.endswith("was built without line breaks; a document stands in one line.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--title", "99999"], "title: {corpus} has no document with the id '99999'; a corpus holds ids, no titles"),
        (["--language", "ed"], "has no document in ed; it has af, de; did you mean 'de'?"),
        (["--dropped", "all"], "dropped: {corpus} is a corpus, which holds what was kept; name the input instead"),
        (["--diff"], "diff: {corpus} is a corpus"),
    ],
)
def test_mistakes_with_a_corpus(words, message, corpus, capsys):
    _, error = refused(capsys, "corpus", "show", corpus, *words)
    assert message.format(corpus=corpus) in error
