import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.corpus.inputs import sentences, write_jsonl
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig, NearDuplicateConfig
from unibert.corpus.near_duplicates import ComparisonTask, find_near_duplicates, signature, with_signatures
from unibert.corpus.readers import Document

HAN = "".join(map(chr, range(0x4E00, 0x4F00)))


def changed(text: str, words: int, seed: int = 0) -> str:
    """Replace some words of a text, at random places far enough apart that each is in shingles of its own."""
    generator = random.Random(seed)
    parts = text.split(" ")
    for place in generator.sample(range(len(parts) // 10), words):
        parts[10 * place + 5] = "".join(generator.choices("xyz", k=9))
    return " ".join(parts)


def dropped(texts: list[str], folder: Path, parts: int = 1, **config) -> list[int]:
    """Return the numbers of the texts that are dropped, if they come from several spools."""
    settings = NearDuplicateConfig(**config)
    spools = []
    for number, share in enumerate(np.array_split(np.array(texts, object), parts)):
        spool = folder / f"{number}.spool"
        documents = [Document("", "af", "", text, "") for text in share]
        assert list(with_signatures(documents, spool, settings)) == documents
        spools.append((spool, np.arange(len(documents), dtype=np.uint32)))
    return np.flatnonzero(find_near_duplicates(ComparisonTask(spools, settings.threshold))).tolist()


def text_of(words: int, seed: int) -> str:
    return " ".join(" ".join(sentences(words // 10, seed)).split()[:words])


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_the_first_of_nearly_equal_documents_is_kept(tmp_path, parts):
    texts = [text_of(200, seed) for seed in range(40)]
    # 2 of 200 words change 10 of 196 shingles: similarity 186 / 206 = 0.90, over 2 deviations from the threshold
    texts += [changed(texts[3], 2), changed(texts[30], 2), changed(texts[3], 2, seed=1)]
    texts.insert(0, changed(texts[7], 2))
    assert dropped(texts, tmp_path, parts) == [8, 41, 42, 43]


@pytest.mark.parametrize("changes", range(0, 13, 2))
def test_similarity_is_the_share_of_common_shingles(changes):
    text = text_of(200, 0)
    config = NearDuplicateConfig()
    equal = np.mean(signature(text, config) == signature(changed(text, changes), config))
    same = 196 - 5 * changes
    # 4 standard deviations of a share estimated by 128 numbers
    assert abs(equal - same / (392 - same)) < 4 * 0.5 / np.sqrt(128)


def test_case_punctuation_and_spaces_do_not_matter(tmp_path):
    text = text_of(100, 0)
    variants = [text, text.upper(), text.replace(" ", " , "), text.replace(" ", "\n"), text.replace(" ", ". – ")]
    assert dropped(variants, tmp_path, threshold=1.0) == [1, 2, 3, 4]
    assert dropped(["किताब और कलम", "काताब और कलम"], tmp_path, threshold=1.0) == []  # marks are spelling


def test_signatures_are_the_same_in_every_process():
    code = (
        "from unibert.corpus.config import NearDuplicateConfig; from unibert.corpus.near_duplicates import signature;"
        f"print(signature({text_of(20, 0)!r}, NearDuplicateConfig()).tolist())"
    )
    outputs = {
        subprocess.check_output([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    }
    assert outputs == {f"{signature(text_of(20, 0), NearDuplicateConfig()).tolist()}\n".encode()}


@pytest.mark.parametrize("spaced", [True, False])
def test_scripts_without_spaces(tmp_path, spaced):
    generator = random.Random(0)
    texts = ["".join(generator.choices(HAN, k=300)) for _ in range(20)]
    texts.append(texts[5][:150] + "丨" + texts[5][151:])
    if spaced:  # spaces between phrases, as in Thai, differ
        texts = [f"{text[: 20 + n]} {text[20 + n :]}" for n, text in enumerate(texts)]
    assert dropped(texts, tmp_path) == [20]


def test_short_texts_and_chains(tmp_path):
    assert dropped(["een twee", "twee een", "Een, twee!", "een", "", "…"], tmp_path) == [2, 5]
    # each is like the one before it, the last is not like the first: it has no kept document that it resembles
    text = text_of(300, 0)
    chain = [text]
    for seed in range(6):
        chain.append(changed(chain[-1], 4, seed))
    found = dropped(chain, tmp_path)
    config = NearDuplicateConfig()
    signatures = [signature(entry, config) for entry in chain]
    kept = [number for number in range(7) if number not in found]
    assert len(kept) > 1
    for number in found:
        assert max(np.mean(signatures[number] == signatures[k]) for k in kept if k < number) >= 0.8


def test_shingle_sizes_and_threshold_are_used(tmp_path):
    text = text_of(200, 0)
    near = changed(text, 6)  # 5-grams: 166 / 226 = 0.73; single words: about 0.95
    assert dropped([text, near], tmp_path) == []
    assert dropped([text, near], tmp_path, words=1) == [1]
    assert dropped([text, near], tmp_path, threshold=0.6) == [1]
    han = "".join(random.Random(0).choices(HAN, k=200))
    near = "".join("丨" if n % 20 == 10 else character for n, character in enumerate(han))
    assert dropped([han, near], tmp_path) == []
    assert dropped([han, near], tmp_path, characters=1) == [1]


@pytest.fixture
def config(tmp_path):
    inputs = tmp_path / "in"
    inputs.mkdir()
    texts = [text_of(200, seed) for seed in range(60)]
    for code, share in (("af", texts[:20]), ("nl", texts[20:])):
        write_jsonl(inputs / f"{code}.jsonl", [{"id": f"{code}{n}", "text": text} for n, text in enumerate(share)])
    copies = [changed(texts[0], 2), texts[1], changed(texts[40], 2)]
    write_jsonl(inputs / "af-2.jsonl", [{"id": f"copy{n}", "text": text} for n, text in enumerate(copies)])
    return CorpusConfig(inputs=[str(inputs)], output=str(tmp_path / "corpus"), vocab_size=400, workers=1)


def report(config):
    return json.loads((Path(config.output) / "report.json").read_text())["languages"]


def test_a_build_counts_them(config, tmp_path):
    one = build_corpus(config)
    assert report(config)["af"]["dropped"] == {"duplicate": 1, "near_duplicate": 1}
    assert report(config)["af"]["kept"] == 21
    assert build_corpus(replace(config, workers=2, output=str(tmp_path / "two"))) == one

    build_corpus(replace(config, near_duplicates=NearDuplicateConfig(threshold=None), overwrite=True))
    assert report(config)["af"]["dropped"] == {"duplicate": 1}


def test_across_languages_the_larger_keeps_its_document(config):
    build_corpus(replace(config, near_duplicates=NearDuplicateConfig(across_languages=True)))
    assert report(config)["af"]["dropped"] == {
        "duplicate": 1,
        "near_duplicate": 1,
        "near_duplicate_in_another_language": 1,
    }
    assert report(config)["nl"]["dropped"] == {}


@pytest.mark.parametrize(("key", "value"), [("threshold", 0.3), ("words", 0), ("characters", 0)])
def test_impossible_values_name_the_key(key, value):
    with pytest.raises(ValueError, match=rf"^near_duplicates\.{key}: "):
        NearDuplicateConfig(**{key: value})
