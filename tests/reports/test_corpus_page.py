"""``report.html`` of a corpus, from the command line."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from tests.corpus.inputs import page_xml, sentences, write_dump, write_jsonl
from tests.refusals import refused
from unibert.cli import main
from unibert.corpus.manifest import Manifest
from unibert.reports.corpus_stages import stages_of

HOSTILE = """<script>alert("1")</script> & 'x' </div>"""
HEBREW = "ירושלים היא עיר הבירה של מדינת ישראל והעיר הגדולה ביותר בה, ונמצאת בהרי יהודה מספר"


class Page(HTMLParser):
    """A page's tables by title, its samples and its elements."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tables, self.samples, self.elements = text, [], [], []
        self._cell = None
        self._in_sample = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""
        elif attributes.get("class") == "sample":
            self.samples.append([attributes, ""])
            self._in_sample = 1
        elif self._in_sample and tag == "div":
            self._in_sample += 1

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._cell)
            self._cell = None
        elif tag == "div" and self._in_sample:
            self._in_sample -= 1

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data
        if self._in_sample:
            self.samples[-1][1] += data

    def table(self, *headers):
        """Return the rows of the table with these first headers, as dicts."""
        (found,) = [table for table in self.tables if tuple(table[0][: len(headers)]) == headers]
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


def number(cell):
    return int(cell.replace(",", "") or 0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    texts = sentences(240)
    pages = [page_xml(n, f"{HOSTILE} {n}", "\n\n".join(texts[3 * n : 3 * n + 3])) for n in range(60)]
    pages += [page_xml(99, "R", HOSTILE, redirect="A"), page_xml(98, HOSTILE, f"{HOSTILE} kurz")]
    pages.append(page_xml(97, HOSTILE, f"[[Datei:x.jpg|thumb {' '.join(texts[:3])}"))
    write_dump(folder / "dewiki.xml.bz2", *pages)
    other = sentences(80, seed=1)
    latin = " and here are some words of another language"
    records = [{"id": f'"{n}"', "text": f"{HEBREW} {line[:2] * 3} {n}{latin}"} for n, line in enumerate(other)]
    write_jsonl(folder / "he.jsonl", [*records, {"id": "copy", "text": records[3]["text"]}])
    evaluation = folder / "eval"
    evaluation.mkdir()
    (evaluation / "test<b>.txt").write_text(texts[7] + "\n")
    return folder


def build(inputs, output, *more):
    words = ["corpus", "build", str(inputs), "--output", str(output), "--vocab_size", "500", "--workers", "1"]
    main([*words, "--near_duplicates.threshold", "null", "--heldout_share", "0.1", *more])


@pytest.fixture(scope="module")
def corpus(inputs, tmp_path_factory):
    corpus = tmp_path_factory.mktemp("out") / "corpus"
    build(inputs, corpus, "--decontaminate", str(inputs / "eval"))
    return corpus


@pytest.fixture(scope="module")
def page(corpus):
    return Page((corpus / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def older(corpus, tmp_path):
    """A copy of the corpus as a program without samples and scripts would have built it."""
    shutil.copytree(corpus, tmp_path / "older")
    report = json.loads((corpus / "report.json").read_text())
    for entry in report["languages"].values():
        for key in ("files", "letters_by_script", "contaminated", "visible_prose", "byte_token_share"):
            entry.pop(key, None)
    del report["notes"]
    (tmp_path / "older" / "report.json").write_text(json.dumps(report))
    for name in ("samples.json", "report.html", "README.md"):
        (tmp_path / "older" / name).unlink()
    return tmp_path / "older"


def test_the_tables_have_the_counts_of_the_report(page, corpus):
    report = json.loads((corpus / "report.json").read_text())["languages"]
    reasons = ("redirect", "too_short", "contaminated", "duplicate")
    assert {reason for entry in report.values() for reason in entry["dropped"]} == set(reasons)
    german, hebrew, total = page.table("language", "files")
    for row, code in ((german, "de"), (hebrew, "he")):
        entry = report[code]
        assert (number(row["read"]), number(row["kept"])) == (entry["read"], entry["kept"])
        assert {reason: number(row[reason]) for reason in reasons if row[reason]} == entry["dropped"]
        assert number(row["read"]) == number(row["kept"]) + sum(number(row[reason]) for reason in reasons)
        assert number(row["tokens"]) == entry["train_tokens"] + entry["heldout_tokens"]
        assert number(row["characters"]) == entry["characters"]
    for key in ("files", "read", *reasons, "kept", "held out", "characters", "bytes", "tokens"):
        assert number(total[key]) == number(german[key]) + number(hebrew[key])
    stages = page.table("stage", "came in")
    assert [row["stage"] for row in stages] == ["inputs", "reading", "filters", "evaluation sets", "copies and stubs"]
    for before, after in pairwise(stages):
        assert before["went on"] == after["came in"]
        assert number(after["came in"]) - number(after["dropped"]) == number(after["went on"])
    assert stages[-1]["went on"] == total["kept"]


def test_other_tables(page, corpus, inputs):
    report = json.loads((corpus / "report.json").read_text())["languages"]
    prose = report["de"]["visible_prose"]
    assert prose["worst_pages"]
    (german, total) = page.table("language", "pages")
    assert number(german["lost"]) == prose["visible_characters"] - prose["kept_characters"]
    assert german["characters"] == total["characters"]
    assert page.table("language", "page")[0]["page"] == prose["worst_pages"][0]["title"]
    manifest = Manifest.load(corpus)
    tokens = {code: manifest.tokens(code) for code in ("de", "he")}
    for row in page.table("language", "train tokens"):
        code = row["language"][:2]
        for exponent in (1, 0.7, 0.5, 0.3):
            share = tokens[code] ** exponent / sum(count**exponent for count in tokens.values())
            assert float(row[f"share, {exponent:g}"].rstrip("%")) == pytest.approx(100 * share, abs=0.05)
            if exponent != 1:
                epochs = share * sum(tokens.values()) / tokens[code]
                assert float(row[f"epochs, {exponent:g}"]) == pytest.approx(epochs, abs=0.005)
    (evaluation,) = page.table("evaluation set")
    assert evaluation == {"evaluation set": str(inputs / "eval" / "test<b>.txt"), "documents": "1", "languages": "de 1"}
    letters = report["he"]["letters_by_script"]
    share = letters["Hebrew"] / sum(count for script, count in letters.items() if script != "Inherited")
    assert 0.5 < share < 0.9
    german, hebrew = page.table("language", "its scripts")
    assert float(hebrew["letters in them"].rstrip(" %")) == pytest.approx(100 * share, abs=0.011)
    assert "Many letters are in scripts that the language does not use: he " in page.text


def test_the_page_is_one_file_and_shows_what_would_be_markup(page):
    names = [tag for tag, _ in page.elements]
    assert names.count("script") == 1
    assert not {"link", "iframe", "b<"} & set(names)
    addresses = [attributes[key] for _, attributes in page.elements for key in ("src", "href") if key in attributes]
    assert len(addresses) == 2
    for address in addresses:
        kind, _, content = address.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(content)
    assert not re.search(r"url\(|@import", page.text)
    texts = [text for _, text in page.samples]
    assert sum(HOSTILE in text for text in texts) == 4  # titles of short and contaminated pages, text of a redirect
    assert names.count("div") == page.text.count("</div>")


def test_samples_tell_language_and_direction(page):
    hebrew = [text for attributes, text in page.samples if attributes.get("lang") == "he"]
    assert len(hebrew) == 4
    assert all(HEBREW in text for text in hebrew)
    paragraphs = [attributes for tag, attributes in page.elements if tag == "p" and "dir" in attributes]
    assert [attributes["dir"] for attributes in paragraphs] == ["auto"] * len(page.samples)
    assert {attributes["lang"] for attributes, _ in page.samples} == {"de", "he"}


def test_the_command_writes_the_same_page_again(corpus, page, capsys):
    (corpus / "report.html").unlink()
    main(["corpus", "report", str(corpus)])
    assert capsys.readouterr().out == f"report   {corpus / 'report.html'}\n"
    assert (corpus / "report.html").read_text(encoding="utf-8") == page.text


def test_any_number_of_processes_gives_the_same_folder(corpus, inputs, tmp_path):
    build(inputs, tmp_path / "two", "--decontaminate", str(inputs / "eval"), "--workers", "2")
    files = {path.relative_to(corpus): path.read_bytes() for path in corpus.rglob("*") if path.is_file()}
    for path, content in files.items():
        assert (tmp_path / "two" / path).read_bytes() == content, path
    assert len(files) == sum(path.is_file() for path in (tmp_path / "two").rglob("*"))


def test_an_older_corpus_has_a_page_too(older):
    main(["corpus", "report", str(older)])
    page = Page((older / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("This corpus is older than builds that") == 2
    assert "No page of a dump was measured." in page.text
    assert page.samples == []
    assert len(page.table("language", "read")) == 3


def test_one_language_of_which_nothing_is_dropped(tmp_path):
    write_jsonl(tmp_path / "af.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(sentences(40))])
    build(tmp_path / "af.jsonl", tmp_path / "corpus")
    page = Page((tmp_path / "corpus" / "report.html").read_text(encoding="utf-8"))
    assert [row["went on"] for row in page.table("stage", "came in")] == ["40"]
    (row, total) = page.table("language", "files", "read", "kept")
    assert row["kept"] == total["kept"] == "40"
    assert [row["share, 0.3"] for row in page.table("language", "train tokens")] == ["100.0%"]
    assert "Corpus: Afrikaans" in page.text


def test_a_corpus_without_a_report_is_refused(older, capsys):
    (older / "report.json").write_text('{"languages": {"de": {}}}')
    assert "damaged (KeyError('kept')); build the corpus again" in refused(capsys, "corpus", "report", older)[1]
    (older / "report.json").unlink()
    assert f"{older}: has no report.json" in refused(capsys, "corpus", "report", older)[1]


def test_reasons_have_an_order_and_unknown_ones_stay():
    stages = stages_of(["near_duplicate", "new_rule", "redirect", "too_short"])
    assert [(stage.name, list(stage.reasons)) for stage in stages] == [
        ("reading", ["redirect"]),
        ("filters", ["too_short"]),
        ("copies and stubs", ["near_duplicate"]),
        ("other rules", ["new_rule"]),
    ]
