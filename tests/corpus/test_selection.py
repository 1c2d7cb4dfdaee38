import math

import numpy as np
import pytest

from unibert.corpus import selection
from unibert.corpus.readers import Document
from unibert.corpus.spool import read_documents, read_index, write_spool


def _index(tmp_path, texts, ids=None, name="a"):
    ids = ids or [str(n) for n in range(len(texts))]
    path = tmp_path / f"{name}.spool"
    write_spool(path, (Document(i, "af", "", text, "") for i, text in zip(ids, texts, strict=True)))
    return path, read_index([path])


def test_spools_are_read_in_any_order(tmp_path):
    first, _ = _index(tmp_path, [f"één {n}\nreël" for n in range(20)], name="a")
    second, _ = _index(tmp_path, [f"twee {n}" for n in range(20)], name="b")
    index = read_index([first, second])
    chosen = np.random.default_rng(0).permutation(40)
    texts = [text for _, text in read_documents([first, second], index[chosen])]
    assert texts == [f"één {n}\nreël" if n < 20 else f"twee {n - 20}" for n in chosen]
    assert index["text_bytes"][0] == len("één 0\nreël".encode())


def test_the_first_of_equal_texts_is_kept(tmp_path):
    path, index = _index(tmp_path, ["a", "b", "a", "c", "b"])
    kept = selection.without_duplicates(index)
    assert [i for i, _ in read_documents([path], kept)] == ["0", "1", "3"]


def test_the_split_depends_on_the_id_alone(tmp_path):
    ids = [str(n) for n in range(2000)]
    one, first = _index(tmp_path, [f"a {n}" for n in ids], ids, "one")
    other, second = _index(tmp_path, [f"b {n}" for n in ids[::-1]], ids[::-1], "other")
    sides = []
    for path, index in ((one, first), (other, second)):
        train, heldout = selection.split_heldout(index, 0.1)
        sides.append({i for i, _ in read_documents([path], heldout)})
        assert len(train) + len(heldout) == 2000
    assert sides[0] == sides[1]
    # 2000 draws of probability 0.1 have a standard deviation of 13.4; five of them
    assert abs(len(sides[0]) - 200) < 67


@pytest.mark.parametrize(("count", "share", "expected"), [(1, 0.5, 0), (2, 0.001, 1), (2, 0.999, 1), (5, 0.0, 0)])
def test_small_languages_have_documents_on_both_sides(tmp_path, count, share, expected):
    _, index = _index(tmp_path, [f"a {n}" for n in range(count)])
    train, heldout = selection.split_heldout(index, share)
    assert len(heldout) == expected
    assert len(train) == count - expected


def test_documents_of_one_id_stay_together(tmp_path):
    path, index = _index(tmp_path, [f"a {n}" for n in range(60)], [str(n // 2) for n in range(60)])
    sides = [{i for i, _ in read_documents([path], side)} for side in selection.split_heldout(index, 0.3)]
    assert not sides[0] & sides[1]
    assert all(sides)


def test_shuffling_depends_on_seed_and_language(tmp_path):
    _, index = _index(tmp_path, [f"a {n}" for n in range(50)])
    keys = (("af", 0), ("af", 1), ("sv", 0))
    orders = [selection.shuffled(index, code, seed)["offset"].tolist() for code, seed in keys]
    assert sorted(orders[0]) == index["offset"].tolist()
    assert len({tuple(order) for order in orders}) == 3
    assert selection.shuffled(index, "af", 0)["offset"].tolist() == orders[0]


def test_shards_are_equally_large_and_lose_nothing(tmp_path):
    _, index = _index(tmp_path, ["x" * (n % 50 + 1) for n in range(1000)])
    shards = selection.cut_into_shards(index, tokens_per_byte=0.5, tokens_per_shard=1000)
    assert np.array_equal(np.concatenate(shards), index)
    sizes = [int(shard["text_bytes"].sum()) for shard in shards]
    assert len(shards) == round(sum(sizes) * 0.5 / 1000)
    assert max(sizes) - min(sizes) <= 100
    assert len(selection.cut_into_shards(index[:1], 0.5, 1000)) == 1
    assert selection.cut_into_shards(index[:0], 0.5, 1000) == []


def test_quotas_follow_the_exponent_and_the_available_bytes():
    sizes = {"en": 1_000_000, "sv": 10_000}
    assert selection.sample_quotas(sizes, 1100, 0.5) == {"en": 1000, "sv": 100}
    assert selection.sample_quotas(sizes, 1000, 0.0) == {"en": 500, "sv": 500}
    assert selection.sample_quotas(sizes, 500_000, 0.5) == {"sv": 10_000, "en": 490_000}
    assert selection.sample_quotas(sizes, 2_000_000, 0.5) == sizes


def test_the_first_documents_reach_the_quota(tmp_path):
    _, index = _index(tmp_path, ["éé", "b", "cc", "d"])  # 4, 1, 2 and 1 bytes
    counts = {quota: len(selection.first_documents(index, quota)) for quota in (0, 1, 4, 5, 6, 7, 8, 100)}
    assert counts == {0: 0, 1: 1, 4: 1, 5: 2, 6: 3, 7: 3, 8: 4, 100: 4}


def test_unigram_entropy_by_hand():
    train, heldout = np.array([3, 0, 1]), np.array([2, 1, 0])
    expected = -(2 * math.log(4 / 7) + math.log(1 / 7)) / 3
    assert selection.unigram_entropy(train, heldout) == pytest.approx(expected, rel=1e-12)
