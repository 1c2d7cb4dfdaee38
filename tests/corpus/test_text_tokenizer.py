"""Text becomes the ids that AutoTokenizer gives, and special tokens that a text spells out are text."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.corpus import fast_tokenizers
from unibert.corpus.fast_tokenizer import save_tokenizer
from unibert.corpus.special_ids import OWN_SPECIAL_IDS, SpecialIds
from unibert.corpus.text_tokenizer import TextTokenizer
from unibert.corpus.tokenizer import train_tokenizer
from unibert.demo import alignment
from unibert.errors import UserError

VOCAB_SIZE = 4000


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Sentences in the twelve languages of the demo."""
    return [line for sentences in alignment.aligned_sentences().values() for line in sentences]


@pytest.fixture(scope="module", params=fast_tokenizers.KINDS)
def folder(request, lines, tmp_path_factory) -> Path:
    return fast_tokenizers.train(request.param, lines, VOCAB_SIZE, tmp_path_factory.mktemp(request.param))


def test_ids_are_those_of_auto_tokenizer(folder, lines):
    expected = AutoTokenizer.from_pretrained(folder)(lines, add_special_tokens=False).input_ids
    assert [ids.tolist() for ids in TextTokenizer.load(folder).encode_batch(lines)] == expected


def test_special_ids_are_those_of_auto_tokenizer(folder):
    tokenizer, ids = AutoTokenizer.from_pretrained(folder), TextTokenizer.load(folder).special_ids
    assert (ids.pad, ids.mask) == (tokenizer.pad_token_id, tokenizer.mask_token_id)
    framed, plain = (tokenizer("a", add_special_tokens=framing).input_ids for framing in (True, False))
    assert [*ids.prefix, *plain, *ids.suffix] == framed
    assert list(ids.special) == sorted(set(tokenizer.all_special_ids))


def test_special_tokens_in_a_text_are_text(folder):
    tokenizer, loaded = AutoTokenizer.from_pretrained(folder), TextTokenizer.load(folder)
    for token in set(tokenizer.all_special_tokens) - {tokenizer.unk_token}:
        [ids] = loaded.encode_batch([f"a {token} b"])
        assert not set(ids.tolist()) & (set(loaded.special_ids.special) - {tokenizer.unk_token_id})
        assert len(ids) > 3


def test_bytes_in_a_text_are_text(lines, tmp_path):
    """In Unigram models that spell unknown characters in bytes, whose bytes converters give the best of scores, 0."""
    save_tokenizer(train_tokenizer([*lines, "0x < > " * 20], vocab_size=VOCAB_SIZE), tmp_path, model_max_length=64)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    for piece in content["model"]["vocab"]:
        piece[1] = 0.0 if piece[0].startswith("<0x") else piece[1]
    file.write_text(json.dumps(content))
    [newline] = AutoTokenizer.from_pretrained(tmp_path)("<0x0A>", add_special_tokens=False).input_ids[1:]
    ids, character = TextTokenizer.load(tmp_path).encode_batch(["<0x0A>", "€"])
    assert newline not in ids
    assert len(ids) > 3
    assert [content["model"]["vocab"][id][0] for id in character] == ["▁", "<0xE2>", "<0x82>", "<0xAC>"]


def test_special_ids_survive_json():
    for ids in (OWN_SPECIAL_IDS, SpecialIds(pad=1, mask=9, prefix=(), suffix=(2, 3), special=(1, 2, 3, 9))):
        assert SpecialIds.of(json.loads(json.dumps(vars(ids)))) == ids


@pytest.mark.parametrize(
    "changes",
    [
        {"prefix": (), "suffix": ()},
        {"special": (4, 3, 2, 1, 0)},
        {"special": (0, 2, 3)},
        {"pad": -1, "special": (-1, 0, 2, 3, 4)},
        {"pad": "0"},
        {"suffix": (3.0,)},
    ],
)
def test_special_ids_that_make_no_sense_are_refused(changes):
    with pytest.raises((ValueError, TypeError)):
        SpecialIds.of(vars(OWN_SPECIAL_IDS) | changes)


def alter(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy with other values of keys that tokenizer.json or tokenizer_config.json have."""
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content |= {key: value for key, value in changes.items() if key in content}
        (target / name).write_text(json.dumps(content))
    return target


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mask_token": None}, "has no mask_token, which pre-training needs"),
        ({"mask_token": None, "pad_token": None}, "has no mask_token and no pad_token"),
        ({"pad_token": "[NONE]"}, "has no pad_token, which pre-training needs"),
        ({"post_processor": None}, "adds no special tokens to a text"),
        ({"model": {"type": "Unknown"}}, "holds no valid fast tokenizer"),
    ],
)
def test_tokenizers_that_cannot_serve_are_refused(changes, sentence, lines, tmp_path):
    folder = fast_tokenizers.train("wordpiece", lines, VOCAB_SIZE, tmp_path / "whole")
    with pytest.raises(UserError, match=sentence):
        TextTokenizer.load(alter(folder, tmp_path / "altered", **changes))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer.json cannot be read \(No such file or directory\)"):
        TextTokenizer.load(tmp_path)
