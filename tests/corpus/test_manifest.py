import json
from dataclasses import replace

import pytest

from unibert.corpus.manifest import Manifest, damaged_shards, verify
from unibert.corpus.shards import ShardWriter
from unibert.errors import UserError


@pytest.fixture
def corpus(tmp_path):
    shards = []
    for language, split in (("sv", "train"), ("af", "train"), ("af", "heldout")):
        with ShardWriter(tmp_path, language, split, vocab_size=100) as writer:
            writer.write("1", [5, 6, 7], text_bytes=9)
        shards.append(writer.shard)
    manifest = Manifest(
        shards=tuple(shards),
        vocab_size=100,
        token_dtype="uint16",
        tokenizer_sha256="ab",
        unigram_entropy={"all": 4.0, "af": 3.5},
    )
    manifest.save(tmp_path)
    return tmp_path


def test_round_trip_and_queries(corpus):
    manifest = verify(corpus)
    assert manifest == Manifest.load(corpus)
    assert manifest.languages == ["af", "sv"]
    assert [shard.path for shard in manifest.shards_of("af", "heldout")] == ["af/heldout-000000.tar"]
    assert manifest.shards_of("sv", "heldout") == []
    assert manifest.tokens("af") == 3


def test_fingerprint_depends_on_content_not_on_order(corpus):
    manifest = Manifest.load(corpus)
    assert replace(manifest, shards=manifest.shards[::-1]).fingerprint == manifest.fingerprint
    changed = (replace(manifest.shards[0], sha256="0" * 64), *manifest.shards[1:])
    assert replace(manifest, shards=changed).fingerprint != manifest.fingerprint
    assert replace(manifest, tokenizer_sha256="cd").fingerprint != manifest.fingerprint


def test_verify_names_the_damaged_shard(corpus):
    shard = corpus / "sv" / "train-000000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:600] + b"\xff" + content[601:])
    manifest = Manifest.load(corpus)
    assert damaged_shards(manifest, corpus, digests=False) == []
    with pytest.raises(UserError, match=r"sv/train-000000\.tar: content differs"):
        verify(corpus)
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"sv/train-000000\.tar: \d+ bytes where"):
        verify(corpus)
    ((found, sentence),) = damaged_shards(manifest, corpus, digests=False)
    assert found.path == "sv/train-000000.tar"
    assert sentence.startswith(f"{shard}: ")
    shard.unlink()
    with pytest.raises(UserError, match=r"sv/train-000000\.tar: missing"):
        damaged_shards(manifest, corpus, digests=False)


def _edit(corpus, **changes):
    path = corpus / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not the manifest"),
        ({"version": 99}, "version 99"),
        ({"vocab_size": "many"}, "malformed"),
        ({"shards": [{"path": "x"}]}, "malformed"),
        ({"shards": 3}, "malformed"),
        ({"unigram_entropy": None}, "malformed"),
        ({"extra": 1}, "malformed"),
    ],
)
def test_foreign_manifests_are_refused(corpus, changes, message):
    _edit(corpus, **changes)
    with pytest.raises(UserError, match=message):
        Manifest.load(corpus)


@pytest.mark.parametrize(
    "change", [{"path": "../../etc/passwd"}, {"path": "/etc/passwd"}, {"tokens": -1}, {"tokens": "3"}, {"split": "dev"}]
)
def test_impossible_shards_are_refused(corpus, change):
    shards = json.loads((corpus / "manifest.json").read_text())["shards"]
    _edit(corpus, shards=[shards[0] | change, *shards[1:]])
    with pytest.raises(UserError, match="malformed"):
        Manifest.load(corpus)


def test_missing_and_unreadable_manifest(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "unibert-c')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="not the manifest"):
        Manifest.load(tmp_path)
