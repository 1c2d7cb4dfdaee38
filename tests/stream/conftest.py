from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.corpus.shards import write_shards
from unibert.corpus.manifest import Manifest

VOCAB_SIZE = 1000


def write_corpus(
    root: Path,
    documents: Mapping[str, int],
    *,
    heldout_documents: int = 0,
    tokens_per_shard: int = 4000,
    tokens_per_block: int = 1000,
    median_length: float = 80,
    vocab_size: int = VOCAB_SIZE,
) -> Path:
    """Write a corpus of random tokens, with document lengths distributed as in Wikipedia and shards of all sizes."""
    generator = np.random.default_rng(len(documents))
    root.mkdir(parents=True, exist_ok=True)
    shards = []
    for language, num_documents in documents.items():
        for split, number in (("train", num_documents), ("heldout", heldout_documents)):
            texts = []
            for index in range(number):
                length = int(np.clip(generator.lognormal(np.log(median_length), 1.1), 4, 4000))
                texts.append((f"{language}{split[0]}{index}", generator.integers(5, vocab_size, length)))
            shards += write_shards(
                root,
                language,
                split,
                texts,
                vocab_size=vocab_size,
                tokens_per_shard=tokens_per_shard,
                tokens_per_block=tokens_per_block,
            )
    Manifest(
        shards=tuple(shards),
        vocab_size=vocab_size,
        token_dtype="uint16",
        tokenizer_sha256="0" * 64,
        unigram_entropy={},
    ).save(root)
    return root


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Path]:
    return lambda *args, **kwargs: write_corpus(tmp_path / "corpus", *args, **kwargs)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three languages, about 16:4:1 in size; must not be altered."""
    folder = tmp_path_factory.mktemp("shared") / "corpus"
    return write_corpus(folder, {"da": 640, "fi": 160, "is": 40}, heldout_documents=30)
