import io
import json
import pickle

import numpy as np
import pytest
import webdataset

from unibert.corpus.shards import Block, ShardWriter, decode_block, encode_block
from unibert.files import file_sha256


def _write(folder, documents, number=0, vocab_size=100, **limits):
    with ShardWriter(folder, "af", "train", number, vocab_size=vocab_size, **limits) as writer:
        for document_id, tokens in documents:
            writer.write(document_id, tokens, text_bytes=2 * len(tokens))
    return writer.shard


def _read(folder, shard):
    path = str(folder / shard.path)
    return [decode_block(sample) for sample in webdataset.WebDataset(path, shardshuffle=False)]


def _documents(count, longest=40):
    generator = np.random.default_rng(0)
    return [(f"id{n}", generator.integers(5, 100, generator.integers(1, longest)).tolist()) for n in range(count)]


def test_webdataset_reads_what_was_written(tmp_path):
    documents = _documents(300)
    shard = _write(tmp_path, documents, number=3, tokens_per_block=200)
    assert shard.path == "af/train-000003.tar"
    blocks = _read(tmp_path, shard)
    found = [(i, t.tolist()) for block in blocks for i, t in zip(block.ids, block.documents(), strict=True)]
    assert found == documents
    assert all(len(block.tokens) <= 200 for block in blocks)
    assert shard.tokens == sum(len(tokens) for _, tokens in documents)
    assert shard.text_bytes == 2 * shard.tokens
    assert shard.documents == 300
    assert shard.blocks == len(blocks) > 3
    assert shard.size_bytes == (tmp_path / shard.path).stat().st_size
    assert shard.sha256 == file_sha256(tmp_path / shard.path)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_block_holds_at_most_256_documents(tmp_path):
    blocks = _read(tmp_path, _write(tmp_path, [(str(n), [5]) for n in range(300)]))
    assert [len(block.ids) for block in blocks] == [256, 44]


def test_equal_documents_give_equal_bytes(tmp_path):
    first, second = (_write(tmp_path / name, _documents(50)) for name in "ab")
    assert first == second


def test_a_document_longer_than_a_block_has_a_block_alone(tmp_path):
    documents = [("a", [5] * 3), ("b", [6] * 50), ("c", [7] * 3)]
    blocks = _read(tmp_path, _write(tmp_path, documents, tokens_per_block=10))
    assert [block.ids for block in blocks] == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_dtype_is_the_narrowest_that_holds_the_vocabulary(tmp_path, vocab_size, dtype):
    (block,) = _read(tmp_path, _write(tmp_path, [("a", [vocab_size - 1])], vocab_size=vocab_size))
    assert block.tokens.dtype == dtype
    assert block.tokens.tolist() == [vocab_size - 1]


def test_impossible_documents_are_refused(tmp_path):
    with ShardWriter(tmp_path, "af", "train", vocab_size=100) as writer:
        for tokens in ([], [-1], [1 << 16]):
            with pytest.raises(ValueError, match="document x"):
                writer.write("x", tokens, 1)
    assert writer.shard is None


def _fail_between_blocks(folder):
    with ShardWriter(folder, "af", "train", vocab_size=9, tokens_per_block=1) as writer:
        writer.write("a", [5, 6], 1)
        writer.write("b", [5, 6], 1)
        raise RuntimeError


def test_an_error_leaves_no_shard(tmp_path):
    with pytest.raises(RuntimeError):
        _fail_between_blocks(tmp_path)
    assert not list(tmp_path.rglob("*.tar*"))


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


class _Bomb:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    "damage",
    [
        {"tokens.npy": None},
        {"json": None},
        {"json": b"{"},
        {"json": b"[]"},
        {"json": json.dumps({"ids": ["a"], "crc32": 0}).encode()},
        {"tokens.npy": b"\x93NUMPY"},
        {"tokens.npy": _npy(np.array([5, 6, 8], np.uint16))},  # one token changed
        {"tokens.npy": _npy(np.array([5, 6, 7, 7], np.uint16))},
        {"tokens.npy": _npy(np.array([5, 6, 7], np.int64))},
        {"lengths.npy": _npy(np.array([2, 1], np.int32))},
        {"lengths.npy": _npy(np.array([[2, 1]], np.uint32))},
        {"tokens.npy": _npy(np.array([_Bomb()], dtype=object))},
        {"tokens.npy": pickle.dumps(_Bomb())},
    ],
)
def test_damaged_blocks_raise_value_error(damage, capsys):
    sample = dict(encode_block(Block(["a", "b"], np.array([2, 1], np.uint32), np.array([5, 6, 7], np.uint16))))
    assert decode_block(sample | {"__key__": "000000"}).ids == ["a", "b"]
    sample = {name: content for name, content in (sample | damage).items() if content is not None}
    with pytest.raises(ValueError, match="block 000000"):
        decode_block(sample | {"__key__": "000000"})
    assert "unpickled" not in capsys.readouterr().out


LINES = [np.array([1, 0, 1], np.uint32), np.array([1], np.uint32)]


def _with_lines(lines=LINES):
    block = Block(["a", "b"], np.array([2, 1], np.uint32), np.array([5, 6, 7], np.uint16), lines=lines)
    return encode_block(block) | {"__key__": "000000"}


def test_lines_are_read_only_when_asked_for():
    sample = _with_lines()
    lines = decode_block(sample, with_lines=True).lines
    assert [document.tolist() for document in lines] == [[1, 0, 1], [1]]
    assert decode_block(sample).lines is None
    # Training does not notice them, nor damage in them.
    assert decode_block(sample | {"lines.npy": b"damage"}).ids == ["a", "b"]
    without = _with_lines(None)
    assert without.keys() == sample.keys() - {"lines.npy"}
    assert json.loads(without["json"]).keys() == {"ids", "crc32"}
    assert decode_block(without, with_lines=True).lines is None


@pytest.mark.parametrize(
    "damage",
    [
        {"lines.npy": None},
        {"lines.npy": b"\x93NUMPY"},
        {"lines.npy": _npy(np.array([1, 1, 0, 1], np.uint32))},  # same sums, another content
        {"lines.npy": _npy(np.array([1, 0, 1, 1], np.int64))},
        {"lines.npy": _npy(np.array([1, 0, 1], np.uint32))},
        {"json": [4]},
        {"json": [2, 2]},
        {"json": [4, 0]},
        {"json": [[3, 1]]},
        {"json": None},
    ],
)
def test_damaged_lines_raise_value_error(damage):
    sample = _with_lines()
    if "json" in damage:
        damage = {"json": json.dumps(json.loads(sample["json"]) | {"lines": damage["json"]}).encode()}
    sample = {name: content for name, content in (sample | damage).items() if content is not None}
    with pytest.raises(ValueError, match="block 000000"):
        decode_block(sample, with_lines=True)
    decode_block(sample)


def test_a_writer_keeps_lines_of_blocks_whose_documents_all_have_them(tmp_path):
    with ShardWriter(tmp_path, "af", "train", vocab_size=100, tokens_per_block=3) as writer:
        writer.write("a", [5, 6], 2, LINES[0])
        writer.write("b", [7], 1, LINES[1])
        writer.write("c", [5, 6], 2, LINES[0])
        writer.write("d", [7], 1)
        with pytest.raises(ValueError, match="document e: lines of 2 tokens"):
            writer.write("e", [7], 1, LINES[0])
    path = str(tmp_path / writer.shard.path)
    first, second = (decode_block(s, with_lines=True) for s in webdataset.WebDataset(path, shardshuffle=False))
    assert [document.tolist() for document in first.lines] == [[1, 0, 1], [1]]
    assert second.lines is None
