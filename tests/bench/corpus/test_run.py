"""``unibert bench corpus`` on a tiny dump."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.corpus.inputs import SITEINFO, page_xml, sentences, write_jsonl
from unibert.bench.corpus.cleaning import CLEANERS, text_file
from unibert.bench.corpus.goals import evaluate_corpus_goals
from unibert.bench.corpus.measure import measure_command
from unibert.bench.corpus.quality import compare_texts, count_leftovers
from unibert.bench.corpus.results import format_corpus_results
from unibert.bench.process_memory import STATUS
from unibert.cli import main

PARAGRAPH = "Der Fluss entspringt in den hohen Bergen und mündet nach vielen Kilometern in einen See"
OTHER = "Am Ufer liegen mehrere kleine Dörfer deren Bewohner seit langer Zeit vom Fang der Fische leben"
TEMPLATES = '<namespace key="10" case="first-letter">Vorlage</namespace></namespaces>'
TIMES = {"seconds", "cpu_seconds", "mb_per_second", "mb_per_cpu_second", "mb_per_cpu_second_min", "seconds_max"}


def dump(*pages):
    """A dump with a tag on each line and a namespace of templates, which WikiExtractor needs."""
    siteinfo = SITEINFO.replace("</namespaces>", TEMPLATES)
    xml = f'<mediawiki xml:lang="de">\n{siteinfo}\n{"".join(pages)}</mediawiki>\n'
    for tag in (
        "<page>",
        "<title>",
        "<ns>",
        "<id>",
        "<redirect",
        "<revision>",
        "<text",
        "</page>",
        "<namespace ",
        "</s",
    ):
        xml = xml.replace(tag, f"\n{tag}")
    return xml


@pytest.fixture(scope="module")
def dumps(tmp_path_factory):
    """A folder with a dump of 40 articles, a redirect and a page that is no article."""
    folder = tmp_path_factory.mktemp("dumps")
    pages = [page_xml(number, f"Seite {number}", "\n".join(sentences(12, number))) for number in range(1, 41)]
    pages += [
        page_xml(41, "Weiter", "#REDIRECT [[Seite 1]]", redirect="Seite 1"),
        page_xml(42, "Datei:A", "Text", ns=6),
    ]
    (folder / "dewiki.xml").write_text(dump(*pages), encoding="utf-8")
    return folder


def run(dumps, output, *words):
    """Run the command; return its results and what it prints."""
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        main(["bench", "corpus", str(dumps), "--vocab_size", "400", "--output", str(output), *words])
    return json.loads(output.read_text()), "\n".join(lines)


@pytest.fixture(scope="module")
def results(dumps, tmp_path_factory):
    output = tmp_path_factory.mktemp("results") / "new" / "corpus.json"
    return run(dumps, output, "--repeats", "2", "--parts", "cleaning,tokenising")


def rows_of(results, part):
    return {row["name"]: row for row in results[part]["rows"]}


def test_the_file_holds_every_row_and_the_table_shows_it(results, dumps):
    content, text = results
    assert content["benchmark"] == "corpus"
    assert content["environment"]["device"]
    assert content["environment"]["versions"]["sentencepiece"]
    assert content["inputs"] == [{"name": "dewiki.xml", "bytes": (dumps / "dewiki.xml").stat().st_size}]
    assert "build" not in content
    rows = rows_of(content, "cleaning")
    assert list(rows) == [cleaner.name for cleaner in CLEANERS]
    assert list(rows_of(content, "tokenising")) == ["UniBERT", "SentencePiece, lists", "SentencePiece, arrays"]
    for row in [*rows.values(), *content["tokenising"]["rows"]]:
        assert row["name"] in text
        assert row["status"] == "ran" or row["why"] == "wikiextractor is not installed"
        assert row["status"] != "ran" or row.keys() >= TIMES


def test_figures_are_medians_of_the_runs(results):
    content, _ = results
    text_bytes = sum(len("\n".join(sentences(12, number)).encode()) for number in range(1, 41))
    assert content["text"] == {"documents": 40, "text_bytes": text_bytes, "lines": 12 * 40}
    runs = [run for run in content["runs"] if (run["part"], run["name"]) == ("cleaning", "UniBERT")]
    row = rows_of(content, "cleaning")["UniBERT"]
    assert [run["round"] for run in runs] == [0, 1]
    assert row["cpu_seconds"] == statistics.median(run["cpu_seconds"] for run in runs)
    assert row["mb_per_cpu_second"] == pytest.approx(text_bytes / 1e6 / row["cpu_seconds"])
    assert row["mb_per_second"] == pytest.approx(text_bytes / 1e6 / row["seconds"])
    if STATUS.exists():
        # Python with its libraries, and nothing of torch
        assert 10e6 < row["peak_bytes"] < 300e6


def test_the_texts_of_plain_pages_are_kept_whole(results):
    content, _ = results
    for row in content["cleaning"]["rows"]:
        if row["side"] != "stage" and row["status"] == "ran":
            quality = row["quality"]
            assert (quality["pages"], quality["missing_pages"], quality["compared_pages"]) == (40, 0, 40)
            assert quality["visible"] == quality["kept"] > 0
            assert quality["lost_share"] == quality["leftovers"] == 0
            assert quality["languages"]["de"]["kept"] == quality["kept"]


@pytest.mark.skipif(find_spec("wikiextractor") is None, reason="needs wikiextractor")
def test_wikiextractor_gives_the_same_texts_in_one_process_as_its_command(dumps, tmp_path):
    texts = []
    for cleaner in CLEANERS:
        if cleaner.side == "peer":
            folder = tmp_path / cleaner.name
            folder.mkdir()
            cleaner.clean([(str(dumps / "dewiki.xml"), "de")], folder)
            records = map(json.loads, text_file(folder, 0).read_text().splitlines())
            texts.append({record["id"]: record["text"] for record in records})
    assert len(texts[0]) == 40
    assert texts[0] == texts[1]


def words(text):
    return sum(len(word) for word in text.split())


@pytest.fixture
def compared(tmp_path):
    """What `compare_texts` finds for a cleaner that keeps all, one that loses and leaves some, and pages they lack."""
    pages = {
        1: f"{PARAGRAPH}\n\n{OTHER}",
        2: f"{{{{Infobox|a=1}}}}\n{OTHER}<ref>{PARAGRAPH}</ref>",
        3: PARAGRAPH,
    }
    path = tmp_path / "dewiki.xml"
    path.write_text(dump(*(page_xml(number, f"S{number}", text) for number, text in pages.items())), encoding="utf-8")
    texts = {
        "whole": {"1": f"{PARAGRAPH}\n{OTHER}", "2": OTHER, "3": PARAGRAPH},
        "lossy": {"1": f"{PARAGRAPH}\n<br>", "2": f"''{OTHER}''&nbsp;", "9": "a page of no article"},
    }
    for name, by_id in texts.items():
        (tmp_path / name).mkdir()
        write_jsonl(
            text_file(tmp_path / name, 0), [{"id": id, "title": "", "text": text} for id, text in by_id.items()]
        )
    return compare_texts([(str(path), "de")], {name: tmp_path / name for name in texts}), pages, texts


def test_kept_prose_and_leftovers_of_crafted_pages(compared):
    found, _, texts = compared
    prose = words(PARAGRAPH) + 2 * words(OTHER)
    assert found["whole"]["visible"] == found["lossy"]["visible"] == prose
    assert found["whole"]["kept"] == prose
    assert found["lossy"]["kept"] == words(PARAGRAPH) + words(OTHER)
    assert found["lossy"]["lost_share"] == pytest.approx(words(OTHER) / prose)
    assert found["lossy"]["worst"] == [{"lost": words(OTHER), "language": "de", "title": "S1"}]
    assert found["whole"]["worst"] == []
    assert (found["whole"]["leftovers"], found["lossy"]["leftovers"]) == (0, 4)
    characters = len(texts["lossy"]["1"]) + len(texts["lossy"]["2"])
    assert found["lossy"]["characters"] == characters
    assert found["lossy"]["leftovers_per_10k"] == pytest.approx(4e4 / characters)


def test_pages_without_a_text_are_counted_and_not_compared(compared):
    found, pages, _ = compared
    assert [found[name]["pages"] for name in found] == [3, 3]
    assert [found[name]["missing_pages"] for name in found] == [0, 1]
    assert [found[name]["compared_pages"] for name in found] == [2, 2]
    sizes = {number: len(text.encode()) for number, text in pages.items()}
    assert found["whole"]["wikitext_bytes"] == sum(sizes.values())
    assert found["lossy"]["wikitext_bytes"] == sizes[1] + sizes[2]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("{{lang|de}} [[Haus]] {| class |}", 6),
        ("''schräg'' '''fett''' l'amour", 4),
        ("a<br /> b<ref name=x>c</ref> <span lang=de>", 4),
        ("&nbsp; &#160; &amp; AT&T; &c.", 3),
        ("-{zh}- __NOTOC__ || -", 4),
        ("1 < 2 | 3 > 2, a_b__c, <https://example.org> {x} [1] l'eau", 0),
    ],
)
def test_leftovers_are_pieces_of_markup(text, number):
    assert count_leftovers(text) == number


def test_the_memory_and_time_of_a_command_are_those_of_its_processes():
    child = "text = 'x' * (100 << 20); sum(range(10**7))"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    measuring = (
        "import json, sys; from unibert.bench.corpus.measure import measure_command;"
        f"print(json.dumps(measure_command([sys.executable, '-c', {parent!r}], sys.stderr.buffer)))"
    )
    completed = subprocess.run([sys.executable, "-c", measuring], capture_output=True, text=True, check=True)
    row = json.loads(completed.stdout)
    assert 100e6 < row["peak_bytes"] < 200e6
    assert row["cpu_seconds"] > 0.05
    assert row["seconds"] > 0.05
    with pytest.raises(RuntimeError, match="no such thing"):
        measure_command([sys.executable, "-c", "raise SystemExit('no such thing')"], sys.stderr.buffer)


@pytest.mark.slow
def test_builds_with_one_and_two_ranks_are_equal(dumps, tmp_path):
    content, text = run(dumps, tmp_path / "corpus.json", "--repeats", "1", "--parts", "build")
    rows = rows_of(content, "build")
    assert list(rows) == ["1 process", "2 processes", "mpirun -n 2"]
    assert content["build"]["same_bytes"]
    assert "the same bytes" in text
    ran = {name: row for name, row in rows.items() if row["status"] == "ran"}
    assert {"1 process", "2 processes"} <= set(ran)
    assert rows["2 processes"]["efficiency"] == rows["1 process"]["seconds"] / (2 * rows["2 processes"]["seconds"])
    assert "efficiency" not in rows["1 process"]
    assert all(50e6 < row["peak_bytes"] < 1e9 for row in ran.values())


def made_up(**changes):
    """Results that meet every goal, with some figures changed: ``part__row__figure``."""

    def row(name, side, **figures):
        return {"name": name, "side": side, "status": "ran", **figures}

    def cleaner(name, side, rate, lost, left):
        quality = {"lost_share": lost, "leftovers_per_10k": left}
        return row(name, side, mb_per_cpu_second=rate, quality=quality)

    results = {
        "cleaning": {
            "ours": cleaner("UniBERT", "ours", 5.0, 0.001, 0.1),
            "peer": cleaner("WikiExtractor", "peer", 4.0, 0.002, 0.2),
        },
        "tokenising": {
            "ours": row("UniBERT", "ours", tokenizer="tokenizer", mb_per_cpu_second=9.5),
            "slow": row("lists", "peer", tokenizer="tokenizer", mb_per_cpu_second=5.0),
            "peer": row("arrays", "peer", tokenizer="tokenizer", mb_per_cpu_second=10.0),
            "other": row("arrays", "peer", tokenizer="pretrained", mb_per_cpu_second=100.0),
        },
        "build": {
            "one": {"name": "1 process", "status": "ran", "ranks": 1, "peak_bytes": 5e8},
            "two": {"name": "2 processes", "status": "ran", "ranks": 2, "peak_bytes": 5e8, "efficiency": 0.95},
        },
    }
    for key, value in changes.items():
        part, name, figure = key.split("__")
        where = results[part][name]
        (where if figure in where else where["quality"])[figure] = value
    return {part: {"rows": list(rows.values())} for part, rows in results.items()}


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"cleaning__ours__mb_per_cpu_second": 3.9}, ["at least as fast as WikiExtractor"]),
        ({"cleaning__ours__lost_share": 0.003}, ["no more than WikiExtractor"]),
        ({"cleaning__ours__leftovers_per_10k": 0.3}, ["no more than WikiExtractor"]),
        ({"tokenising__ours__mb_per_cpu_second": 8.9}, ["≥ 90% of the tokenizer alone"]),
        ({"build__two__efficiency": 0.89}, ["≥ 90% efficient from 1 to 2 ranks"]),
        ({"build__one__peak_bytes": 1e9}, ["< 1 GB a rank"]),
    ],
)
def test_goals_follow_from_the_figures(changes, missed):
    goals = list(evaluate_corpus_goals(made_up(**changes)))
    assert len(goals) == 7
    assert [goal.name for goal in goals if not goal.met] == missed


def test_only_what_ran_decides_goals():
    results = made_up()
    results["cleaning"]["rows"][1] = {"name": "WikiExtractor", "side": "peer", "status": "failed", "why": "no"}
    assert len(list(evaluate_corpus_goals(results))) == 4


def test_unequal_corpora_are_named(results):
    content, _ = results
    build = {"same_bytes": False, "rows": []}
    assert "DIFFERENT BYTES" in format_corpus_results(content | {"build": build})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere: no such file or folder"),
        (["DUMPS", "--repeats", "0"], "repeats: must be at least 1"),
        (["DUMPS", "--vocab_size", "20"], "vocab_size: must be at least 300"),
        (["DUMPS", "--parts", "washing"], "parts"),
        (["TEXT"], "de.txt is no dump (.xml); leave it out, or name other parts than cleaning"),
    ],
)
def test_mistakes_give_one_line_errors(arguments, message, dumps, tmp_path, capsys):
    text = tmp_path / "de.txt"
    text.write_text("Text")
    words = [{"DUMPS": str(dumps), "TEXT": str(text)}.get(word, word) for word in arguments]
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "corpus", *words])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("unibert: error: ")
    assert error.count("\n") == 1


def test_a_vocabulary_that_the_text_does_not_allow_is_refused(dumps, tmp_path, capsys):
    output = tmp_path / "corpus.json"
    with pytest.raises(SystemExit):
        main(["bench", "corpus", str(dumps), "--parts", "tokenising", "--vocab_size", "64000", "--output", str(output)])
    assert "vocab_size: 64000 pieces are more than the text allows" in capsys.readouterr().err
    assert not output.exists()
