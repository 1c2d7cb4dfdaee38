"""The stream on real articles, news and web pages in unequal languages of several scripts."""

from pathlib import Path

import numpy as np
import pytest

from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig
from unibert.corpus.manifest import Manifest
from unibert.schedules import Timeline
from unibert.stream import Stream, StreamConfig

LANGUAGES = ("ast", "bar", "da", "hi", "ja", "my")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "corpus"
    inputs = [str(shared_data / "corpus" / f"{code}.jsonl.xz") for code in LANGUAGES]
    build_corpus(CorpusConfig(inputs=inputs, output=str(folder), vocab_size=8000, tokens_per_shard=20_000))
    return folder


@pytest.mark.parametrize("sequence_length", [128, 512, 2048])
def test_padding(corpus: Path, sequence_length: int) -> None:
    manifest = Manifest.load(corpus)
    tokens = sum(manifest.tokens(code) for code in LANGUAGES)
    timeline = Timeline(tokens, 16, sequence_length)
    stream = Stream(corpus, StreamConfig(lanes=4, sampling_exponent=1.0), seed=0, timeline=timeline)
    filled = sum(int(step.sequences.document_lengths.sum()) for step in stream.steps())
    assert 0 <= 1 - filled / timeline.total_tokens < 0.02


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.0])
def test_tokens_follow_the_mixture(corpus: Path, exponent: float) -> None:
    manifest = Manifest.load(corpus)
    run_tokens = 2_000_000
    config = StreamConfig(lanes=4, window_shards=2, sampling_exponent=exponent)
    stream = Stream(corpus, config, seed=0, timeline=Timeline(run_tokens, 16, 256))
    drawn = np.zeros(len(LANGUAGES))
    for step in stream.steps():
        drawn += np.bincount(
            step.sequences.document_languages, step.sequences.document_lengths - 2, minlength=len(LANGUAGES)
        )
    tokens = np.array([manifest.tokens(code) for code in stream.languages], dtype=float)
    expected = tokens**exponent / (tokens**exponent).sum()
    # A lane is one or two shards of 20,000 tokens ahead or behind, four lanes up to eight: 8 % of the run over six
    # languages.
    np.testing.assert_allclose(drawn / drawn.sum(), expected, atol=0.02)
