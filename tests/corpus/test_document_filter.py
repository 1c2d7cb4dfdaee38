import json
from dataclasses import replace

import pytest

from tests.corpus.inputs import sentences, write_jsonl
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig
from unibert.corpus.manifest import Manifest
from unibert.errors import UserError

MODULE = """
import re

number = 5

def without_mail(text, language):
    if language == "nl" and "geheim" in text:
        return None
    return re.sub(r"\\S+@\\S+", "  ", text)

def failing(text, language):
    raise RuntimeError("oops")

def wrong(text, language):
    return 7
"""


@pytest.fixture
def config(tmp_path, monkeypatch, request):
    module = f"filters_{request.node.name.split('[')[0]}"  # modules stay imported
    (tmp_path / f"{module}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    texts = sentences(60)
    for code in ("af", "nl"):
        records = [{"id": str(n), "text": f"{text} a@b.c slot"} for n, text in enumerate(texts)]
        write_jsonl(tmp_path / f"{code}.jsonl", [*records, {"id": "g", "text": f"geheim {texts[3][::-1]}"}])
    return CorpusConfig(
        inputs=[str(tmp_path / f"{code}.jsonl") for code in ("af", "nl")],
        output=str(tmp_path / "corpus"),
        vocab_size=400,
        workers=1,
        document_filter=f"{module}:without_mail",
    )


def test_texts_are_changed_and_dropped(config, tmp_path):
    manifest = build_corpus(config)
    report = json.loads((tmp_path / "corpus" / "report.json").read_text())["languages"]
    assert report["nl"]["dropped"] == {"document_filter": 1}
    assert report["af"]["dropped"] == {}
    # the text is normalised again: no two spaces where an address was
    assert report["nl"]["characters"] == sum(len(f"{text} slot") for text in sentences(60))
    assert Manifest.load(config.output) == manifest
    assert manifest.document_filter == config.document_filter
    assert build_corpus(replace(config, workers=2, output=str(tmp_path / "two"))) == manifest


def test_a_corpus_without_one_has_no_key(config, tmp_path):
    build_corpus(replace(config, document_filter=None))
    assert "document_filter" not in json.loads((tmp_path / "corpus" / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("module", "must name a function as module:function"),
        ("nowhere_at_all:f", "nowhere_at_all cannot be imported"),
        ("{module}:f", r"has no function 'f'"),
        ("{module}:number", r"has no function 'number'"),
        ("{module}:failing", r"failed on document 0 of .*af\.jsonl \(RuntimeError\('oops'\)\)"),
        ("{module}:wrong", r"returned 7 for document 0 of .*af\.jsonl"),
    ],
)
def test_mistakes_are_named(config, name, message):
    module = config.document_filter.partition(":")[0]
    with pytest.raises(UserError, match=rf"(^|: )document_filter: .*{message}"):
        build_corpus(replace(config, document_filter=name.format(module=module)))
