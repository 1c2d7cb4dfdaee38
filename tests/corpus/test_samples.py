"""Samples of kept and dropped documents, and the scripts of letters, in the report of a build."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corpus.cleaned_parts import results_of_parts
from tests.corpus.inputs import page_xml, sentences, write_dump, write_jsonl
from unibert.corpus import cleaning
from unibert.corpus.build import build_corpus
from unibert.corpus.cleaning import CleaningResult
from unibert.corpus.config import CorpusConfig, NearDuplicateConfig, StubConfig
from unibert.corpus.filters import letters_by_script
from unibert.corpus.readers import Document
from unibert.corpus.samples import DocumentSamples


def document(name: str, text: str) -> Document:
    return Document(name, "de", f"Titel {name}", text, "test")


documents = st.lists(st.builds(document, st.sampled_from("abcdefgh"), st.text(max_size=4)), max_size=20)


@given(documents, st.lists(st.integers(0, 2), min_size=20, max_size=20), st.randoms())
def test_any_order_and_any_parts_give_the_same_samples(offered, part_of, random):
    whole, parts = DocumentSamples(), [DocumentSamples() for _ in range(3)]
    for one in offered:
        whole.offer("too_short", one)
    shuffled = random.sample(offered, len(offered))
    for one, part in zip(shuffled, part_of, strict=False):
        parts[part].offer("too_short", one)
    merged = DocumentSamples()
    for part in parts:
        merged.add(part)
    assert merged == whole
    different = {(one.id, one.text) for one in offered}
    assert len(whole.chosen.get("too_short", [])) == min(2, len(different))


def test_samples_are_short_and_can_be_written():
    samples = DocumentSamples()
    samples.offer("excluded", Document("1", "de", "a\x00b" * 400, "é\x1b\udfffü\n" * 400, "test"))
    ((sample,),) = samples.chosen.values()
    assert (sample.title[:4], sample.text[:5]) == ("a\ufffdba", "é\ufffd\ufffdü\n")
    assert len(sample.title) == len(sample.text) == 300
    json.dumps(samples.content(), ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    texts = sentences(240)
    pages = [page_xml(n, f"Titel {n}", "\n\n".join(texts[3 * n : 3 * n + 3])) for n in range(60)]
    pages += [page_xml(100 + n, f"Umleitung {n}", "#REDIRECT [[Titel 1]]", redirect="Titel 1") for n in range(5)]
    pages += [page_xml(200 + n, f"Diskussion:{n}", f"Frage {n}", ns=1) for n in range(4)]
    pages += [page_xml(300, "Kurz", "'''kurz'''"), page_xml(301, "Leer", "{{leer}}")]
    write_dump(folder / "dewiki.xml.bz2", *pages)
    other = sentences(200, seed=1)
    records = [{"id": str(n), "text": other[n] + "\n" + other[n + 100]} for n in range(80)]
    near = [{"id": f"near {n}", "text": records[n]["text"] + " und noch"} for n in range(4)]
    again = [{"id": f"again {n}", "text": records[n]["text"]} for n in range(10, 13)]
    template = "Der Ort hat {0} Einwohner und liegt in der Gemeinde Dorf im Kreis Land im Norden des Reiches {0}."
    stubs = [{"id": f"stub {n}", "text": template.format(10**5 + 37 * n)} for n in range(40)]
    write_jsonl(folder / "af.jsonl", [*records, *near, *again, *stubs])
    return folder


def config_for(inputs: Path, output: Path, **more: object) -> CorpusConfig:
    stubs = StubConfig(max_template_share=0.5)
    return CorpusConfig(inputs=[str(inputs)], output=str(output), vocab_size=400, workers=1, stubs=stubs, **more)


@pytest.fixture(scope="module")
def corpus(inputs, tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus")
    build_corpus(config_for(inputs, corpus))
    return corpus


def read(corpus: Path, name: str):
    return json.loads((corpus / name).read_text(encoding="utf-8"))


def test_each_reason_has_samples(corpus, inputs):
    report, samples = read(corpus, "report.json")["languages"], read(corpus, "samples.json")
    assert set(report["de"]["dropped"]) == {"redirect", "not_an_article", "too_short"}
    assert set(report["af"]["dropped"]) == {"duplicate", "stub", "near_duplicate"}
    for code, entry in report.items():
        numbers = {outcome: len(chosen) for outcome, chosen in samples[code].items()}
        assert numbers == {"kept": 3} | {reason: min(2, count) for reason, count in entry["dropped"].items()}
    ids = {outcome: {sample["id"] for sample in chosen} for outcome, chosen in samples["af"].items()}
    assert all(name.startswith("stub") for name in ids["stub"])
    assert all(name.startswith("near") for name in ids["near_duplicate"])
    assert all(name.startswith("again") for name in ids["duplicate"])
    assert all(name.isdigit() for name in ids["kept"])
    texts = {str(n): line for n, line in enumerate((inputs / "af.jsonl").read_text().split("\n")[:80])}
    for sample in samples["af"]["kept"]:
        assert sample["text"] == json.loads(texts[sample["id"]])["text"][:300]
    redirect = samples["de"]["redirect"][0]
    assert (redirect["title"][:10], redirect["text"]) == ("Umleitung ", "#REDIRECT [[Titel 1]]")
    assert {sample["text"] for sample in samples["de"]["too_short"]} == {"kurz", "{{leer}}"}


def result_in_parts(dump: Path, folder: Path, parts: int) -> CleaningResult:
    total = None
    for result in results_of_parts(dump, folder, parts):
        if total is None:
            total = result
        else:
            total.samples.add(result.samples)
            total.letters.update(result.letters)
    return total


def test_parts_of_a_dump_give_the_same(inputs, tmp_path):
    whole = result_in_parts(inputs / "dewiki.xml.bz2", tmp_path, 1)
    parts = result_in_parts(inputs / "dewiki.xml.bz2", tmp_path, 3)
    assert parts.samples == whole.samples
    assert parts.letters == whole.letters
    assert whole.letters.total() > 1000


def test_letters_are_those_of_the_kept_documents(tmp_path):
    greek = "Η Αθήνα είναι η πρωτεύουσα και η μεγαλύτερη πόλη της Ελλάδας (Athens, 3090508)"
    texts = {"el": [f"{greek} {n}" for n in range(4)], "de": sentences(60)}
    for code, lines in texts.items():
        write_jsonl(tmp_path / f"{code}.jsonl", [{"id": str(n), "text": line} for n, line in enumerate(lines)])
    write_jsonl(tmp_path / "de-short.jsonl", [{"text": "kurz"}])
    build_corpus(config_for(tmp_path, tmp_path / "corpus", near_duplicates=NearDuplicateConfig(threshold=None)))
    report = read(tmp_path / "corpus", "report.json")["languages"]
    for code, lines in texts.items():
        assert report[code]["letters_by_script"] == letters_by_script("\n".join(lines))
    assert report["el"]["letters_by_script"]["Latin"] == 4 * len("Athens")
    assert report["de"]["files"] == 2


def test_text_that_a_function_may_have_to_remove_is_not_shown(inputs, tmp_path, monkeypatch):
    write_jsonl(tmp_path / "de.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(sentences(40))])
    dropped = sentences(40)[5]

    def without_one(name, text, language, where):
        return None if text == dropped else "" if text == "kurz" else text

    monkeypatch.setattr(cleaning, "filtered", without_one)
    build_corpus(
        CorpusConfig(
            inputs=[str(tmp_path / "de.jsonl"), str(inputs / "dewiki.xml.bz2")],
            output=str(tmp_path / "corpus"),
            vocab_size=400,
            workers=1,
            document_filter="builtins:max",
        )
    )
    samples = read(tmp_path / "corpus", "samples.json")["de"]
    assert samples["document_filter"] == [{"id": "5", "title": "", "text": ""}]
    assert {sample["text"] for sample in samples["redirect"] + samples["too_short"]} == {""}
    assert all(sample["text"] for sample in samples["kept"])
