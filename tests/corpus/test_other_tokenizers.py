"""Corpora with the tokenizer of another model, whole and trimmed."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, CanineTokenizer

from tests.corpus import fast_tokenizers
from unibert.corpus.build import build_corpus
from unibert.corpus.config import CorpusConfig, NearDuplicateConfig
from unibert.corpus.manifest import Manifest
from unibert.corpus.pretrained_tokenizer import Origin, PretrainedTokenizer, segmentation_digest
from unibert.corpus.text_tokenizer import TextTokenizer
from unibert.demo import alignment
from unibert.demo.alignment import WIKI
from unibert.errors import UserError
from unibert.schedules import Timeline
from unibert.stream import Stream, StreamConfig
from unibert.stream.reader import read_blocks
from unibert.stream.source import ShardSource

VOCAB_SIZE = 4000
SPELT_OUT = "They write <mask>, [MASK], <s>, </s>, [SEP] and <pad> here, as a text on tokens may well do."


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return [line for sentences in alignment.aligned_sentences().values() for line in sentences]


@pytest.fixture(scope="module", params=fast_tokenizers.KINDS)
def model(request, lines, tmp_path_factory) -> Path:
    return fast_tokenizers.train(request.param, lines, VOCAB_SIZE, tmp_path_factory.mktemp(request.param))


def build(output: Path, tokenizer: Path | str, **changes: object) -> Path:
    settings: dict[str, object] = {"heldout_share": 0.2, "tokens_per_shard": 2000, "workers": 1}
    settings["near_duplicates"] = NearDuplicateConfig(threshold=None)  # some texts differ by a number only
    settings |= {"inputs": [str(WIKI)], "languages": ["de", "en", "ru", "zh"]} | changes
    build_corpus(CorpusConfig(output=str(output), tokenizer=str(tokenizer), **settings))
    return output


@pytest.fixture(scope="module")
def corpus(model, tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("whole") / "corpus", model)


@pytest.fixture(scope="module")
def trimmed(model, tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("trimmed") / "corpus", model, trim_vocabulary=2600)


def documents(corpus: Path) -> dict[str, list[int]]:
    """Token ids of every document, by language and id."""
    manifest, source = Manifest.load(corpus), ShardSource(corpus, StreamConfig())
    found = {}
    for shard in manifest.shards:
        for block in read_blocks(source, shard, manifest.vocab_size):
            parts = np.split(block.tokens, np.cumsum(block.lengths.astype(np.int64))[:-1])
            found |= {f"{shard.language}/{id}": part.tolist() for id, part in zip(block.ids, parts, strict=True)}
    return found


def test_documents_have_the_ids_of_auto_tokenizer(corpus, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    articles = {
        f"{file.language}/{document.id}": document.text
        for file in alignment.find_inputs([str(WIKI)])
        for document in alignment.DocumentReader(file)
    }
    found = documents(corpus)
    assert len(found) == 120
    for name, ids in found.items():
        assert ids == tokenizer(articles[name], add_special_tokens=False).input_ids


def test_manifest_names_the_special_ids(corpus, model):
    manifest = Manifest.load(corpus)
    assert manifest.special_ids == TextTokenizer.load(model).special_ids
    assert manifest.vocab_size == TextTokenizer.load(model).vocab_size
    content = (corpus / "tokenizer" / "tokenizer.json").read_bytes()
    assert manifest.tokenizer_sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("whole_words", [False, True])
def test_sequences_are_framed_and_masked_by_the_tokenizers_own_ids(corpus, whole_words):
    special = Manifest.load(corpus).special_ids
    # Text may hold unknown characters.
    never_text = set(special.special) - {AutoTokenizer.from_pretrained(corpus / "tokenizer").unk_token_id}
    config = StreamConfig(lanes=2, window_shards=2, masking_rate=0.3, whole_words=whole_words)
    stream = Stream(corpus, config, seed=0, timeline=Timeline(60_000, 8, 64))
    shown = originals = 0
    for step in stream.steps():
        for batch in step.micro_batches(8):
            ids = batch.input_ids.where(batch.labels == -100, batch.labels).flatten()
            bounds = batch.cu_seqlens.tolist()
            for begin, end in pairwise(bounds):
                stretch = ids[begin:end].tolist()
                if batch.document_ids.flatten()[begin] < 0:
                    assert stretch == [special.pad] * len(stretch)
                    continue
                text_end = len(stretch) - len(special.suffix)
                assert stretch[: len(special.prefix)] == list(special.prefix)
                assert stretch[text_end:] == list(special.suffix)
                assert not set(stretch[len(special.prefix) : text_end]) & never_text
            masked = batch.labels.flatten()[batch.masked_positions]
            assert not np.isin(masked.numpy(), special.special).any()
            visible = batch.input_ids.flatten()[batch.masked_positions]
            replaced = visible[(visible != special.mask) & (visible != masked)]
            assert not np.isin(replaced.numpy(), special.special).any()
            shown += int((visible == special.mask).sum())
            originals += len(masked)
    # 80 % of 0.3 * 60,000 draws: a standard deviation is 0.003; whole words draw some three tokens at once.
    assert shown / originals == pytest.approx(0.8, abs=0.03)


def test_special_tokens_in_a_document_are_text(model, tmp_path):
    (tmp_path / "en.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "text": f"{SPELT_OUT} {i}"}) + "\n" for i in range(9))
    )
    corpus = build(tmp_path / "corpus", model, inputs=[str(tmp_path / "en.jsonl")], languages=["en"], heldout_share=0.0)
    special, tokenizer = Manifest.load(corpus).special_ids, AutoTokenizer.from_pretrained(model)
    for ids in documents(corpus).values():
        assert not set(ids) & (set(special.special) - {tokenizer.unk_token_id})


def test_the_report_counts_what_has_no_piece(model, tmp_path):
    """Each rune is three bytes, in a piece each or not, or unknown."""
    content = json.loads((model / "tokenizer.json").read_text())
    spells_in_bytes = content["model"].get("byte_fallback", False)
    is_whole = spells_in_bytes or content["pre_tokenizer"]["type"] == "ByteLevel"
    texts = [
        {"id": str(i), "text": f"In this text on runes two of them, ᚠᚢ, stand as an example of them. {i}"}
        for i in range(9)
    ]
    (tmp_path / "en.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    corpus = build(tmp_path / "corpus", model, inputs=[str(tmp_path / "en.jsonl")], languages=["en"], heldout_share=0.2)
    report = json.loads((corpus / "report.json").read_text())["languages"]["en"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    all_tokens = [token for ids in documents(corpus).values() for token in tokenizer.convert_ids_to_tokens(ids)]
    unknown, in_bytes = all_tokens.count(tokenizer.unk_token), sum(token.startswith("<0x") for token in all_tokens)
    assert (report["unknown_tokens"], report["byte_tokens"]) == (unknown, in_bytes)
    assert report["unknown_token_share"] == pytest.approx(unknown / len(all_tokens), abs=5e-7)  # six digits
    assert report["byte_token_share"] == pytest.approx(in_bytes / len(all_tokens), abs=5e-7)
    assert (unknown > 0) != is_whole
    assert (in_bytes >= 9 * 2 * 3) == spells_in_bytes
    assert (
        f"| {in_bytes / len(all_tokens):.2%} | {unknown / len(all_tokens):.2%} |" in (corpus / "report.md").read_text()
    )


def test_a_trimmed_corpus_uses_pieces_of_the_original(trimmed, corpus, model):
    whole, manifest = Manifest.load(corpus), Manifest.load(trimmed)
    origin = Origin.load(trimmed / "tokenizer")
    assert origin is not None
    assert origin.source_ids is not None
    assert manifest.vocab_size == len(origin.source_ids) <= 2600 < whole.vocab_size
    assert origin.segmentation == segmentation_digest(PretrainedTokenizer.load(str(model)).content)
    before, after = documents(corpus), documents(trimmed)
    assert before.keys() == after.keys()
    for name, ids in after.items():
        if np.isin(before[name], origin.source_ids).all():
            assert origin.source_ids[ids].tolist() == before[name]
        else:
            assert len(ids) >= len(before[name])


def test_the_report_tells_what_trimming_costs(trimmed, corpus):
    report = json.loads((trimmed / "report.json").read_text())["languages"]
    whole = json.loads((corpus / "report.json").read_text())["languages"]
    for code, counts in report.items():
        assert counts["untrimmed_train_tokens"] == whole[code]["train_tokens"] <= counts["train_tokens"]
    assert "| trimming |" in (trimmed / "report.md").read_text()
    assert "trimming" not in (corpus / "report.md").read_text()


def test_a_corpus_lends_its_tokenizer_with_its_origin(trimmed, tmp_path):
    second = build(tmp_path / "second", trimmed)
    first, origin = Origin.load(trimmed / "tokenizer"), Origin.load(second / "tokenizer")
    assert first is not None
    assert origin is not None
    assert (origin.name, origin.segmentation) == (first.name, first.segmentation)
    assert np.array_equal(origin.source_ids, first.source_ids)
    assert documents(second) == documents(trimmed)


def test_a_manifest_of_version_1_has_our_special_ids(tmp_path, corpus):
    content = json.loads((corpus / "manifest.json").read_text())
    del content["special_ids"]
    (tmp_path / "manifest.json").write_text(json.dumps(content | {"version": 1}))
    special = Manifest.load(tmp_path).special_ids
    assert (special.pad, special.mask, special.prefix, special.suffix) == (0, 4, (2,), (3,))


@pytest.mark.parametrize(
    ("tokenizer", "changes", "sentence"),
    [
        ("nobody/nothing", {}, "tokenizer: nobody/nothing is neither a folder nor a model that the Hugging Face"),
        ("{own}", {"trim_vocabulary": 900}, "was trained by UniBERT; train a smaller one with vocab_size instead"),
        ("{other}", {"trim_vocabulary": 20}, "trim_vocabulary: 20 is too small"),
    ],
)
def test_tokenizers_that_cannot_serve_are_refused(tokenizer, changes, sentence, lines, tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    if "own" in tokenizer:
        settings = {"inputs": [str(WIKI)], "languages": ["en"], "vocab_size": 1000, "workers": 1}
        build_corpus(CorpusConfig(output=str(own), **settings))
    fast_tokenizers.train("wordpiece", lines, VOCAB_SIZE, other)
    with pytest.raises(UserError, match=sentence):
        build(tmp_path / "corpus", tokenizer.format(own=own, other=other), **changes)
    assert not (tmp_path / "corpus" / "manifest.json").exists()


def test_a_tokenizer_without_a_fast_form_is_refused(tmp_path):
    """CANINE's, which reads characters, is one."""
    CanineTokenizer().save_pretrained(tmp_path / "canine")
    with pytest.raises(UserError, match=r"canine has only a slow tokenizer; convert it to a fast one \("):
        build(tmp_path / "corpus", tmp_path / "canine")


def test_a_corpus_that_is_overwritten_has_the_new_tokenizer(lines, tmp_path):
    """Also when one process builds both."""
    for kind in ("wordpiece", "unigram"):
        model = fast_tokenizers.train(kind, lines, VOCAB_SIZE, tmp_path / kind)
        corpus = build(tmp_path / "corpus", model, overwrite=True)
        assert Manifest.load(corpus).special_ids == TextTokenizer.load(model).special_ids
