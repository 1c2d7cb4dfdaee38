import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.corpus.inputs import sentences, write_jsonl
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig, StubConfig

HAN = "".join(map(chr, range(0x4E00, 0x5200)))


def stub(number: int) -> str:
    """Return a text of a template: 17 of its 21 words are the template's, and each run of 4 of these is a phrase."""
    name, place = (f"{part}{'abcdefghij'[number % 10]}{'klmnopqrst'[number // 10]}" for part in ("xu", "yv"))
    return (
        f"{name} {place} is een dorp in het noorden van het land en had {number + 1000} inwoners bij telling van {name}"
    )


def han(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(HAN, k=length))


HAN_TEMPLATE = han(40, 99)


@pytest.fixture
def config(tmp_path):
    texts = sentences(160)
    prose = ["\n".join(texts[2 * n : 2 * n + 2]) for n in range(80)]
    quoting = [f"{stub(n)}. {' '.join(texts[n : n + 2])}" for n in range(3)]  # a template's sentence in longer prose
    af = [*((f"stub{n}", stub(n)) for n in range(30)), *((f"prose{n}", text) for n, text in enumerate(prose + quoting))]
    zh = [(f"stub{n}", han(20, n) + HAN_TEMPLATE) for n in range(30)]
    zh += [(f"prose{n}", han(80, 100 + n)) for n in range(30)]
    for code, documents in (("af", af), ("zh", zh)):
        random.Random(0).shuffle(documents)
        write_jsonl(tmp_path / f"{code}.jsonl", [{"id": name, "text": text} for name, text in documents])
    return CorpusConfig(
        inputs=[str(tmp_path / "af.jsonl"), str(tmp_path / "zh.jsonl")],
        output=str(tmp_path / "corpus"),
        vocab_size=1400,
        workers=1,
        stubs=StubConfig(max_template_share=0.5),
    )


def dropped(config: CorpusConfig) -> dict[str, dict[str, int]]:
    build_corpus(replace(config, overwrite=True))
    report = json.loads((Path(config.output) / "report.json").read_text())
    return {code: entry["dropped"] for code, entry in report["languages"].items()}


def test_stubs_of_a_template_are_dropped(config, tmp_path):
    assert dropped(config) == {"af": {"stub": 30}, "zh": {"stub": 30}}
    one, two = (build_corpus(replace(config, workers=n, output=str(tmp_path / f"{n}"))) for n in (1, 2))
    assert one == two


def test_without_the_rule_they_stay(config):
    assert dropped(replace(config, stubs=StubConfig())) == {"af": {}, "zh": {}}


@pytest.mark.parametrize(
    ("key", "value", "codes"),
    [
        ("max_template_share", 0.9, set()),
        ("documents", 34, set()),  # the sentence is in 33 documents
        ("words", 12, {"af", "zh"}),  # the run of 16 words has a number, which differs
        ("words", 17, {"zh"}),
        ("characters", 41, {"af"}),
    ],
)
def test_every_limit_is_used(config, key, value, codes):
    config.stubs = replace(config.stubs, **{key: value})
    assert {code for code, reasons in dropped(config).items() if reasons} == codes


@pytest.mark.parametrize(
    ("key", "value"), [("max_template_share", 1.5), ("documents", 1), ("words", 0), ("characters", 0)]
)
def test_impossible_values_name_the_key(key, value):
    with pytest.raises(ValueError, match=rf"^stubs\.{key}: "):
        StubConfig(**{key: value})
