"""Every piece of a document comes with the vector of that very piece, or with none."""

import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unibert.corpus.manifest import Manifest, Teaching
from unibert.corpus.shards import add_member, encode_block, encode_vectors
from unibert.errors import UserError
from unibert.files import file_sha256
from unibert.schedules import Timeline
from unibert.stream import Batch, Stream, StreamConfig
from unibert.stream.reader import read_blocks
from unibert.stream.source import ShardSource

LENGTH = 32
PIECE = LENGTH - 2
TEACHING = Teaching(teacher="t", weights_sha256="0" * 64, prompt="", sequence_length=LENGTH, depth=2, width=4)


def vector(tokens: np.ndarray) -> list[int]:
    """Four numbers that tell pieces apart, and that fp16 holds exactly."""
    return [len(tokens), tokens[0], tokens[-1], tokens[len(tokens) // 2]]


def teach(corpus: Path) -> None:
    """Give each piece of each document in the train shards its vector."""
    manifest, source, shards = Manifest.load(corpus), ShardSource(corpus, StreamConfig()), []
    for shard in manifest.shards:
        path = corpus / shard.path
        blocks = list(read_blocks(source, shard, manifest.vocab_size))
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, block in enumerate(blocks):
                pieces = [
                    tokens[start : start + PIECE]
                    for tokens in block.documents()
                    for start in range(0, len(tokens), PIECE)
                ]
                vectors = np.array([vector(piece) for piece in pieces], np.float16)
                for extension, content in (encode_block(block) | encode_vectors(vectors)).items():
                    add_member(tar, f"{number:06d}.{extension}", content)
        shards.append(replace(shard, size_bytes=path.stat().st_size, sha256=file_sha256(path)))
    replace(manifest, shards=tuple(shards), teaching=TEACHING).save(corpus)


@pytest.fixture
def taught(make_corpus: Callable[..., Path]) -> Path:
    corpus = make_corpus({"da": 200, "fi": 90})
    teach(corpus)
    return corpus


def batches(corpus: Path, sequence_length: Any, **options: Any) -> list[Batch]:
    tokens = 3 * sum(shard.tokens for shard in Manifest.load(corpus).shards)
    stream = Stream(
        corpus,
        StreamConfig(lanes=4, window_shards=2, num_workers=options.pop("num_workers", 0)),
        seed=1,
        timeline=Timeline(tokens, 8, sequence_length),
        with_vectors=True,
        **options,
    )
    return [batch for step in stream.steps() for batch in step.micro_batches(3)]


def documents(batch: Batch) -> list[tuple[np.ndarray, torch.Tensor]]:
    """Return the tokens of each document without its frame, and its vector."""
    unmasked = torch.where(batch.labels == -100, batch.input_ids, batch.labels)
    assert batch.document_vectors is not None
    return [
        (unmasked[batch.document_ids == document].numpy()[1:-1], found)
        for document, found in enumerate(batch.document_vectors)
    ]


def test_every_piece_has_its_own_vector(taught: Path) -> None:
    """While sequences are as long as those that were taught, all pieces are; 800 of them and more."""
    found = batches(taught, LENGTH)
    assert sum(len(batch.document_languages) for batch in found) > 800
    for batch in found:
        assert batch.taught.all()
        for tokens, its_vector in documents(batch):
            assert its_vector.tolist() == vector(tokens)


def test_pieces_that_other_lengths_cut_have_theirs_or_none(taught: Path) -> None:
    """What remains of a window is cut again at each new length, from places where the teacher's pieces rarely begin."""
    counts = {True: 0, False: 0}
    for batch in batches(taught, [(0.0, LENGTH), (0.2, 48), (0.5, LENGTH), (0.8, 17)]):
        for (tokens, its_vector), is_taught in zip(documents(batch), batch.taught.tolist(), strict=True):
            counts[is_taught] += 1
            if is_taught:
                assert its_vector.tolist() == vector(tokens)
            else:
                assert its_vector.isnan().all()
    assert min(counts.values()) > 200


def test_vectors_change_nothing_else(taught: Path) -> None:
    without = Stream(taught, StreamConfig(lanes=4, window_shards=2), seed=1, timeline=Timeline(4096, 8, LENGTH))
    batch = next(without.steps()).micro_batches(3)[0]
    assert batch.document_vectors is None
    assert batch.taught.all()
    with_vectors = batches(taught, LENGTH)[0]
    assert torch.equal(batch.input_ids, with_vectors.input_ids)
    assert batch.digest() != with_vectors.digest()


def test_ranks_and_loader_processes_deliver_the_same_vectors(taught: Path) -> None:
    alone = torch.cat([batch.document_vectors for batch in batches(taught, LENGTH)[:6]])
    ranks = [batches(taught, LENGTH, rank=rank, world_size=2, num_workers=2) for rank in range(2)]
    # Micro-batches of 3: a step has 8 sequences alone, 4 on each of two ranks.
    assert torch.equal(
        torch.cat([b.document_vectors for step in (0, 2) for r in ranks for b in r[step : step + 2]]), alone
    )


def test_blocks_without_intact_vectors_are_damaged(taught: Path) -> None:
    manifest, source = Manifest.load(taught), ShardSource(taught, StreamConfig())
    shard = max(manifest.shards, key=lambda shard: shard.blocks)
    content = (taught / shard.path).read_bytes()
    place = content.index(b"'<f2'") + 200
    (taught / shard.path).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert len(list(read_blocks(source, shard, manifest.vocab_size))) == shard.blocks
    assert len(list(read_blocks(source, shard, manifest.vocab_size, PIECE))) == shard.blocks - 1
    assert not list(read_blocks(source, shard, manifest.vocab_size, PIECE // 2))


@pytest.mark.parametrize(
    ("sequence_length", "message"),
    [
        (64, "training.sequence_length: 64, but the teacher of .* read pieces for sequences of 32 tokens; use 32"),
        ([(0.0, 64), (0.5, 128)], "training.sequence_length: 64, 128, but the teacher"),
    ],
)
def test_other_lengths_are_refused(taught: Path, sequence_length: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        batches(taught, sequence_length)


def test_a_corpus_without_vectors_is_refused(make_corpus: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"null takes the teacher's vectors from the corpus, but .* has none; name a"):
        batches(make_corpus({"da": 50}), LENGTH)


def test_a_manifest_keeps_its_teaching(taught: Path) -> None:
    manifest = Manifest.load(taught)
    assert manifest.teaching == TEACHING
    assert manifest.piece_length == PIECE
    text = (taught / "manifest.json").read_text()
    (taught / "manifest.json").write_text(text.replace(f'"sequence_length": {LENGTH}', '"sequence_length": 0'))
    with pytest.raises(UserError, match=r"malformed manifest .teaching: sequence_length cannot be 0."):
        Manifest.load(taught)
