"""The card of a corpus: what the hub reads of it, and its examples."""

import hashlib
import json
import re

import pytest
import yaml
from huggingface_hub import DatasetCard

from tests.corpus.inputs import page_xml, sentences, write_dump, write_jsonl
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig
from unibert.corpus.filters import FilterConfig
from unibert.corpus.manifest import Manifest
from unibert.installation import unibert_version
from unibert.languages import LANGUAGES, iso_code, language_tag


def build(inputs, output, **more):
    build_corpus(
        CorpusConfig(inputs=[str(path) for path in inputs], output=str(output), vocab_size=400, workers=1, **more)
    )
    return (output / "README.md").read_text(encoding="utf-8")


def write_wiki(path, seed=0):
    texts = sentences(90, seed=seed)
    return write_dump(path, *(page_xml(n, f"Titel {n}", "\n\n".join(texts[3 * n : 3 * n + 3])) for n in range(30)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    dump = write_wiki(folder / "alswiki-20261101-pages-articles-multistream.xml.bz2")
    dumps = [dump, write_wiki(folder / "be_x_oldwiki-latest-pages-articles.xml.bz2", seed=1)]
    sha1 = hashlib.sha1(dump.read_bytes()).hexdigest()
    entry = {"language": "als", "date": "20261101", "url": f"https://x.org/{dump.name}", "sha1": sha1, "modified_ns": 1}
    others = {"gone.xml.bz2": entry | {"size": 1}, dumps[1].name: entry | {"size": 1}}
    record = {"license": "CC BY-SA 4.0", "files": {dump.name: entry | {"size": dump.stat().st_size}, **others}}
    (folder / "downloads.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def corpus(inputs, tmp_path_factory):
    corpus = tmp_path_factory.mktemp("out") / "corpus"
    build([inputs], corpus, filters=FilterConfig(min_script_share=0.0))
    return corpus


def test_the_metadata_are_what_the_hub_reads(corpus):
    data = DatasetCard.load(corpus / "README.md").data.to_dict()
    assert data["language"] == ["be", "gsw"]
    assert data["language_bcp47"] == ["be-tarask"]
    assert data["license"] == ["cc-by-sa-4.0", "gfdl"]
    assert data["task_categories"] == ["fill-mask"]
    assert data["size_categories"] == ["n<1K"]
    assert data["pretty_name"] == "Tokenised text in Alemannic, Belarusian (Taraškievica)"


def test_the_card_tells_sources_rules_and_tool(corpus, inputs):
    card = (corpus / "README.md").read_text()
    dump = next(inputs.glob("als*"))
    sha1 = hashlib.sha1(dump.read_bytes()).hexdigest()
    assert f"| {dump.name} | als | 20261101 | {dump.stat().st_size:,} | {sha1} |" in card
    assert re.search(r"\| be_x_oldwiki-latest-pages-articles.xml.bz2 \| be-tarask \| \| [\d,]+ \| \|", card)
    assert f"built with UniBERT {unibert_version()}" in card
    assert "| `filters.min_script_share` | 0.0 |" in card
    assert "| `near_duplicates.threshold` | 0.8 |" in card
    assert "`heldout_share` 0.01" in card
    assert Manifest.load(corpus).tokenizer_sha256 in card
    assert "not known" not in card
    assert not any(text in card for text in (str(corpus), str(inputs), "`output`", "`workers`"))


def test_the_record_of_downloads_comes_along(corpus, inputs):
    record = json.loads((corpus / "downloads.json").read_text())
    (name, entry), *others = record["files"].items()
    assert (others, name) == ([], next(inputs.glob("als*")).name)
    assert entry["url"] == f"https://x.org/{name}"
    assert "modified_ns" not in entry
    assert record["license"] == "CC BY-SA 4.0"


def test_the_examples_run(corpus, capsys):
    examples = re.findall(r"```python\n(.*?)```", (corpus / "README.md").read_text(), re.DOTALL)
    printed = []
    for example in examples:
        exec(example.replace("FOLDER", str(corpus)), {})
        printed.append(capsys.readouterr().out)
    manifest = Manifest.load(corpus)
    ids = {line.split()[0] for line in printed[0].splitlines()}
    assert len(printed[0].splitlines()) == sum(shard.documents for shard in manifest.shards_of("als"))
    assert ids == set(re.findall(r"^(\d+) \[", printed[1], re.MULTILINE))
    assert sentences(90)[6] in printed[0]


def test_a_licence_is_named_only_if_it_is_known(inputs, tmp_path):
    old = write_wiki(tmp_path / "dewiki-20230501-pages-articles.xml.bz2")
    other = write_jsonl(tmp_path / "af.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(sentences(30))])
    card = build([old], tmp_path / "old")
    assert yaml.safe_load(card.split("---\n")[1])["license"] == ["cc-by-sa-3.0", "gfdl"]
    assert not (tmp_path / "old" / "downloads.json").exists()
    card = build([old, other], tmp_path / "mixed")
    assert "license" not in yaml.safe_load(card.split("---\n")[1])
    assert "dumps of Wikimedia is under CC BY-SA 3.0" in card
    assert "The licence of the text of 1 file (af.jsonl) is not known" in card


def test_a_damaged_record_is_no_obstacle(tmp_path):
    write_jsonl(tmp_path / "af.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(sentences(30))])
    (tmp_path / "downloads.json").write_text('{"files": 3')
    assert "| af.jsonl | af |" in build([tmp_path], tmp_path / "corpus")


def test_every_tag_begins_with_an_iso_639_code():
    assert {code: iso_code(code) for code in ("als", "simple", "sh", "roa-tara", "be-tarask", "vi")} == {
        "als": "gsw",
        "simple": "en",
        "sh": "hbs",
        "roa-tara": "nap",
        "be-tarask": "be",
        "vi": "vi",
    }
    assert all(re.fullmatch("[a-z]{2,3}", iso_code(code)) for code in LANGUAGES)
    # RFC 5646: a language, then a script, region, variant or private part
    form = r"[a-z]{2,3}(-[A-Z][a-z]{3})?(-[A-Z]{2})?(-[a-z0-9]{5,8})*(-x-[a-z0-9]{1,8})?"
    assert all(re.fullmatch(form, language_tag(code)) for code in LANGUAGES)
