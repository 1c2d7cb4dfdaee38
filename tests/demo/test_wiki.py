"""The embedded mini-Wikipedia has the properties that the demo needs."""

import json
import re
import tarfile
import unicodedata
from collections import Counter

import pytest

from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig
from unibert.corpus.inputs import find_inputs
from unibert.corpus.manifest import Manifest
from unibert.corpus.readers import DocumentReader
from unibert.demo.alignment import HELDOUT_SHARE, SENTENCES_PER_ARTICLE, WIKI, aligned_sentences
from unibert.languages import LANGUAGES

ARTICLES = 30


@pytest.fixture(scope="module")
def sentences():
    return aligned_sentences()


def test_twelve_languages_in_at_least_six_scripts(sentences):
    assert len(sentences) == 12
    scripts = {
        Counter(unicodedata.name(letter).split()[0] for letter in "".join(lines) if letter.isalpha()).most_common(1)[0][
            0
        ]
        for lines in sentences.values()
    }
    assert {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "DEVANAGARI", "CJK"} <= scripts
    assert all(LANGUAGES[code].in_107 for code in sentences)


def test_every_sentence_has_its_translation(sentences):
    assert {len(lines) for lines in sentences.values()} == {ARTICLES * SENTENCES_PER_ARTICLE}
    assert all(len(set(lines)) == len(lines) for lines in sentences.values())
    for code, lines in sentences.items():
        # Nearly all numbers have the same digits in every language; lines that do not correspond would share few.
        pairs = [
            (set(re.findall(r"\d+", english)), set(re.findall(r"\d+", line)))
            for english, line in zip(sentences["en"], lines, strict=True)
        ]
        with_numbers = [(numbers, here) for numbers, here in pairs if numbers]
        assert sum(bool(numbers & here) for numbers, here in with_numbers) > 0.9 * len(with_numbers), code


def test_the_heldout_sentences_are_those_that_the_corpus_holds_out(sentences, tmp_path):
    corpus = tmp_path / "corpus"
    options = {"vocab_size": 2000, "heldout_share": HELDOUT_SHARE, "workers": 1}
    build_corpus(CorpusConfig(inputs=[str(WIKI)], output=str(corpus), languages=["en", "zh"], **options))
    shards = [shard for shard in Manifest.load(corpus).shards if shard.split == "heldout"]
    assert {shard.language for shard in shards} == {"en", "zh"}
    for shard in shards:
        with tarfile.open(corpus / shard.path) as archive:
            blocks = [member for member in archive.getmembers() if member.name.endswith(".json")]
            ids = {id for member in blocks for id in json.load(archive.extractfile(member))["ids"]}
        assert len(ids) == 4
        [file] = (file for file in find_inputs([str(WIKI)]) if file.language == shard.language)
        articles = sorted((document.id for document in DocumentReader(file)), key=int)
        expected = [line for number, line in enumerate(sentences[shard.language]) if articles[number // 9] in ids]
        assert aligned_sentences(heldout=True)[shard.language] == expected


def test_articles_are_long_enough_and_free_of_markup(sentences):
    for code, lines in sentences.items():
        assert not re.search(r"[\[\]{}<>|]|''", "".join(lines)), code
        for first in range(0, len(lines), SENTENCES_PER_ARTICLE):
            article = " ".join(lines[first : first + SENTENCES_PER_ARTICLE])
            # Scripts without spaces are counted in characters; some languages need ninety words for a hundred.
            assert len(article) >= 160 if code in ("ja", "zh") else len(article.split()) >= 85, (code, first)


def test_the_dumps_have_the_markup_of_real_ones():
    for file in find_inputs([str(WIKI)]):
        text = file.path.read_text(encoding="utf-8")
        reader = DocumentReader(file)
        assert len(list(reader)) == ARTICLES
        assert reader.counts["redirect"] == 6
        assert reader.counts["not_an_article"] == 2
        assert all(markup in text for markup in ("[[", "{{", "{|", "&lt;ref&gt;", "&lt;!--", "== ")), file.path
