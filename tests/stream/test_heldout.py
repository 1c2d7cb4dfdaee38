from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unibert.corpus.manifest import Manifest
from unibert.errors import UserError
from unibert.stream import Batch, StreamConfig, split_batches
from unibert.stream.source import ShardSource
from unibert.stream.splits import SplitReader

CONFIG = StreamConfig(lanes=2)


def batches(corpus: Path, **changes: Any) -> list[Batch]:
    arguments = {"seed": 0, "sequence_length": 64, "micro_batch_size": 4} | changes
    return list(split_batches(corpus, CONFIG, split="heldout", **arguments))


def labelled_sequences(parts: list[Batch]) -> dict[int, tuple[list[int], list[int]]]:
    return {
        int(index): (ids.tolist(), labels.tolist())
        for batch in parts
        for index, ids, labels in zip(batch.sequence_indices, batch.input_ids, batch.labels, strict=True)
        if (labels != -100).any()
    }


def test_every_held_out_document_once_in_sequences_of_one_language(corpus: Path) -> None:
    manifest = Manifest.load(corpus)
    tokens = dict.fromkeys(manifest.languages, 0)
    for batch in batches(corpus):
        for sequence in batch.origins:
            assert len({origin.split("/")[0] for origin in sequence}) == 1
            assert all("/heldout-" in origin for origin in sequence)
        lengths = torch.bincount(batch.document_ids[batch.document_ids >= 0])
        for language, length in zip(batch.document_languages.tolist(), lengths.tolist(), strict=True):
            tokens[manifest.languages[language]] += length - 2
    assert tokens == {code: manifest.tokens(code, "heldout") for code in manifest.languages}


def test_same_sequences_and_masks_for_every_world_size(corpus: Path) -> None:
    expected = labelled_sequences(batches(corpus))
    pairs = [pair for ids, labels in expected.values() for pair in zip(ids, labels, strict=True)]
    masked = [label for _, label in pairs if label != -100]
    ordinary = [token for token, label in pairs if token >= 5 or label != -100]
    # About 9,000 tokens: five standard deviations are below 0.02.
    assert len(masked) / len(ordinary) == pytest.approx(0.15, abs=0.02)
    for world_size in (2, 3):
        ranks = [batches(corpus, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert len({len(rank) for rank in ranks}) == 1
        merged: dict[int, Any] = {}
        for rank in ranks:
            assert not merged.keys() & labelled_sequences(rank).keys()
            merged |= labelled_sequences(rank)
        assert merged == expected


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(4, 1), (8, 4), (7, 1)])
def test_ranks_have_equal_numbers_of_batches(corpus: Path, world_size: int, micro_batch_size: int) -> None:
    limits = {"max_sequences_per_language": 2, "micro_batch_size": micro_batch_size}
    ranks = [batches(corpus, rank=rank, world_size=world_size, **limits) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    assert all(len(batch.input_ids) for rank in ranks for batch in rank)
    labelled = [index for rank in ranks for index in labelled_sequences(rank)]
    assert sorted(labelled) == list(range(6))


def test_a_rank_that_knows_the_counts_opens_only_the_shards_of_its_share(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"split": "heldout", "seed": 0, "sequence_length": 64}
    counts = SplitReader(corpus, CONFIG, **arguments).count(["da", "fi", "is"])
    opened: set[str] = set()
    open_shard = ShardSource.open
    monkeypatch.setattr(ShardSource, "open", lambda self, shard: opened.add(shard.language) or open_shard(self, shard))
    share = SplitReader(corpus, CONFIG, **arguments).share(counts, 0, 6)
    assert opened == {"da"}
    own = labelled_sequences(list(share.batches(4)))
    assert own == labelled_sequences(batches(corpus, rank=0, world_size=6))
    # Batches are made anew from what is kept.
    assert labelled_sequences(list(share.batches(4))) == own


def test_number_of_sequences_per_language(corpus: Path) -> None:
    parts = batches(corpus, max_sequences_per_language=3)
    languages = [sequence[0].split("/")[0] for batch in parts for sequence in batch.origins]
    assert languages == ["da"] * 3 + ["fi"] * 3 + ["is"] * 3
    assert {int(language) for batch in parts for language in batch.document_languages} == {0, 1, 2}


def test_a_corpus_without_held_out_documents_is_refused(make_corpus: Callable[..., Path]) -> None:
    without = make_corpus({"da": 20})
    with pytest.raises(UserError, match="has no held-out documents; build it with a held-out share"):
        batches(without)


def test_damaged_held_out_shard_is_refused(make_corpus: Callable[..., Path]) -> None:
    corpus = make_corpus({"da": 20}, heldout_documents=30)
    shard = Manifest.load(corpus).shards_of("da", "heldout")[0]
    path = corpus / shard.path
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.rindex(b".tokens.npy") + 700])
    with pytest.raises(UserError, match="damaged blocks, but the shards read here must be intact"):
        batches(corpus)
