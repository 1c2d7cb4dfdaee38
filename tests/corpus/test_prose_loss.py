"""What cleaning loses of the visible prose, in the report of a build."""

import json
from pathlib import Path

import pytest

from tests.corpus.cleaned_parts import results_of_parts
from tests.corpus.inputs import page_xml, sentences, write_dump, write_jsonl
from unibert.corpus import prose_loss
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig
from unibert.corpus.prose_loss import ProseLoss, kept_percentage

LOSSY = 14
"""Number of pages with a file link that is never closed, which costs its line."""


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    texts = sentences(240)
    pages = []
    for number in range(80):
        paragraphs = texts[3 * number : 3 * number + 3]
        if number < LOSSY:
            paragraphs[1] = " ".join(["[[Datei:x.jpg|thumb", *([paragraphs[1]] * (1 + number // 2))])
        pages.append(page_xml(number, f"Titel {number}", "\n\n".join(paragraphs)))
    return write_dump(tmp_path_factory.mktemp("dump") / "dewiki.xml.bz2", *pages, page_xml(99, "X", "kurz"))


def loss_in_parts(dump: Path, folder: Path, parts: int) -> ProseLoss:
    total = ProseLoss()
    for result in results_of_parts(dump, folder, parts):
        total.add(result.prose)
    return total


def test_the_report_tells_what_is_kept_and_the_worst_pages(dump, tmp_path):
    write_jsonl(tmp_path / "af.jsonl", [{"text": text} for text in sentences(80, seed=1)])
    corpus = tmp_path / "corpus"
    inputs = [str(dump), str(tmp_path / "af.jsonl")]
    build_corpus(CorpusConfig(inputs=inputs, output=str(corpus), vocab_size=400, workers=1))
    report = json.loads((corpus / "report.json").read_text())["languages"]
    assert "visible_prose" not in report["af"]
    prose = report["de"]["visible_prose"]
    assert prose["measured_pages"] == 81
    worst = prose["worst_pages"]
    assert {page["id"] for page in worst} <= {str(number) for number in range(LOSSY)}
    assert len(worst) == 10
    assert [page["lost"] for page in worst] == sorted((page["lost"] for page in worst), reverse=True)
    lost = prose["visible_characters"] - prose["kept_characters"]
    assert lost > sum(page["lost"] for page in worst) > 0.7 * lost
    text = (corpus / "report.md").read_text()
    share = kept_percentage(prose["visible_characters"], prose["kept_characters"])
    assert f"Visible prose kept: {share} of {prose['visible_characters']:,} characters of words on 81 pages." in text
    assert f"| {share} | {worst[0]['title']} (id {worst[0]['id']}) {worst[0]['lost']:,}, " in text
    assert f"(id {worst[3]['id']})" not in text


@pytest.mark.parametrize("all_pages_bytes", [1 << 20, 0])
def test_the_loss_does_not_depend_on_parts(dump, all_pages_bytes, monkeypatch, tmp_path):
    monkeypatch.setattr(prose_loss, "ALL_PAGES_BYTES", all_pages_bytes)
    whole = loss_in_parts(dump, tmp_path, 1)
    assert loss_in_parts(dump, tmp_path, 3) == whole
    assert whole.pages == 81 if all_pages_bytes else 1 <= whole.pages <= 20


def test_pages_of_a_large_file_are_a_sample_by_id(dump, monkeypatch, tmp_path):
    every_page = loss_in_parts(dump, tmp_path, 1)
    monkeypatch.setattr(prose_loss, "ALL_PAGES_BYTES", 0)
    monkeypatch.setattr(prose_loss, "ONE_PAGE_IN", 3)
    sample = loss_in_parts(dump, tmp_path, 1)
    # 81 pages, each with probability 1/3: 27 ± 4.2
    assert 10 < sample.pages < 44
    assert 0 < sample.visible < every_page.visible
    assert {page.id for page in sample.worst} <= {str(number) for number in range(LOSSY)}


def test_a_share_is_rounded_down():
    assert kept_percentage(100_000, 99_999) == "99.99 %"
    assert kept_percentage(7, 7) == "100.00 %"
    assert kept_percentage(0, 0) == ""
