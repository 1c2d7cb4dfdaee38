"""An epoch holds every document exactly once, and sequences hold the documents of the shards unchanged."""

import json
import lzma
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.corpus.shards import write_shards
from unibert.corpus.manifest import Manifest
from unibert.schedules import Timeline
from unibert.stream import Batch, Stream, StreamConfig
from unibert.stream.plan import Plan
from unibert.stream.reader import read_blocks
from unibert.stream.source import ShardSource


def corpus_tokens(corpus: Path) -> dict[str, list[int]]:
    manifest, source = Manifest.load(corpus), ShardSource(corpus, StreamConfig())
    return {
        f"{shard.path}#{document}": tokens.tolist()
        for shard in manifest.shards
        for block in read_blocks(source, shard, manifest.vocab_size)
        for document, tokens in zip(block.ids, block.documents(), strict=True)
    }


def pieces(batch: Batch) -> list[tuple[str, list[int]]]:
    """Return origin and unmasked tokens, frame included, of every document of the batch."""
    unmasked = torch.where(batch.labels == -100, batch.input_ids, batch.labels)
    origins = [origin for sequence in batch.origins for origin in sequence]
    return [(origin, unmasked[batch.document_ids == document].tolist()) for document, origin in enumerate(origins)]


@pytest.mark.parametrize(
    "sequence_length", [64, [(0.0, 32), (0.2, 64), (0.5, 48), (0.7, 64)]], ids=["constant", "changing"]
)
def test_three_epochs_hold_every_document_three_times(make_corpus: Callable[..., Path], sequence_length: Any) -> None:
    corpus = make_corpus({"da": 120})
    shards = Manifest.load(corpus).shards_of("da")
    assert len(shards) > 2
    # One lane with windows of one epoch: what it gives before its fourth window is three epochs.
    config = StreamConfig(lanes=1, window_shards=len(shards))
    timeline = Timeline(5 * sum(shard.tokens for shard in shards), 1, sequence_length)
    seen: dict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)
    for step in Stream(corpus, config, seed=1, timeline=timeline).steps():
        (batch,) = step.micro_batches(1)
        for origin, tokens in pieces(batch):
            assert tokens[0] == 2
            assert tokens[-1] == 3
            seen[origin].update(tokens[1:-1])
        if step.state["0"]["window"] == 3:
            break
    else:
        pytest.fail("the run ended before the third epoch")
    expected = {origin: Counter(tokens) for origin, tokens in corpus_tokens(corpus).items()}
    assert seen.keys() == expected.keys()
    for origin, tokens in expected.items():
        assert seen[origin] == {token: 3 * count for token, count in tokens.items()}


def test_lanes_share_an_epoch(make_corpus: Callable[..., Path]) -> None:
    """Over all lanes, every document of the windows that make up the first epoch appears in full exactly once."""
    corpus = make_corpus({"da": 200, "fi": 90})
    manifest = Manifest.load(corpus)
    config = StreamConfig(lanes=4, window_shards=1, sampling_exponent=1.0)
    timeline = Timeline(2 * sum(shard.tokens for shard in manifest.shards), 4, 64)
    stream = Stream(corpus, config, seed=1, timeline=timeline)
    plan = Plan(manifest, stream.languages, seed=1, run_tokens=timeline.total_tokens, exponent=1.0)
    seen: Counter[str] = Counter()
    finished: dict[int, int] = {}
    for step in stream.steps():
        (batch,) = step.micro_batches(4)
        for origin, tokens in pieces(batch):
            seen[origin] += len(tokens) - 2
        finished = {int(lane): state["window"] for lane, state in step.state.items() if lane != "fingerprint"}
    drawn: Counter[str] = Counter()
    touched: Counter[str] = Counter()
    for lane, windows in finished.items():
        drawn.update(plan[window * 4 + lane].shard.path for window in range(windows))
        touched.update(plan[window * 4 + lane].shard.path for window in range(windows + 1))
    lengths = {origin: len(tokens) for origin, tokens in corpus_tokens(corpus).items()}
    for origin, length in lengths.items():
        shard = origin.split("#")[0]
        assert drawn[shard] * length <= seen[origin] <= touched[shard] * length
    assert min(touched[shard.path] for shard in manifest.shards) >= 1


def test_sequences_hold_contiguous_pieces_of_the_documents(corpus: Path) -> None:
    documents = corpus_tokens(corpus)
    stream = Stream(corpus, StreamConfig(lanes=4), seed=5, timeline=Timeline(4096, 16, 128))
    for step in stream.steps():
        (batch,) = step.micro_batches(16)
        for (origin, tokens), language in zip(pieces(batch), batch.document_languages.tolist(), strict=True):
            inner = ",".join(map(str, tokens[1:-1]))
            assert f",{inner}," in f",{','.join(map(str, documents[origin]))},"
            assert origin.startswith(stream.languages[language] + "/")
        for sequence, positions in zip(batch.document_ids, batch.position_ids, strict=True):
            filled = int((sequence >= 0).sum())
            assert (sequence[:filled].diff() >= 0).all()
            assert (sequence[filled:] == -1).all()
            expected = [
                i for length in sequence[:filled].unique_consecutive(return_counts=True)[1] for i in range(length)
            ]
            assert positions.tolist() == expected + [0] * (len(sequence) - filled)
        assert (batch.input_ids[batch.document_ids < 0] == 0).all()
        # One entry per document, and one for the padding of each sequence that has any.
        sequences = [sequence.unique_consecutive(return_counts=True)[1].tolist() for sequence in batch.document_ids]
        lengths = [length for sequence in sequences for length in sequence]
        assert batch.cu_seqlens.dtype == torch.int32
        assert batch.cu_seqlens.diff().tolist() == lengths
        assert batch.max_seqlen == max(lengths)


def test_windows_are_mixed(corpus: Path) -> None:
    """The first tenth of a window has sequences of all its shards, and documents from all over them."""
    config = StreamConfig(lanes=1, window_shards=3, sampling_exponent=1.0)
    stream = Stream(corpus, config, seed=2, timeline=Timeline(20 * 64, 20, 64))
    origins = [origin for sequence in next(stream.steps()).micro_batches(20)[0].origins for origin in sequence]
    numbers: dict[str, list[int]] = defaultdict(list)
    for origin in origins:
        numbers[origin.split("#")[0]].append(int(origin.split("#")[1][3:]))
    assert len(numbers) == 3
    assert max(max(seen) - min(seen) for seen in numbers.values()) > 20


def padding_share(corpus: Path, sequence_length: int) -> float:
    """Return the share of padding over one epoch or slightly more."""
    tokens = sum(shard.tokens for shard in Manifest.load(corpus).shards)
    padding = total = 0
    for step in Stream(corpus, StreamConfig(lanes=2), seed=0, timeline=Timeline(tokens, 8, sequence_length)).steps():
        for batch in step.micro_batches(8):
            padding += int((batch.document_ids < 0).sum())
            total += batch.document_ids.numel()
    return padding / total


@pytest.mark.parametrize("sequence_length", [128, 512])
def test_padding_on_realistic_lengths(make_corpus: Callable[..., Path], sequence_length: int) -> None:
    corpus = make_corpus({"da": 900}, tokens_per_shard=50_000, tokens_per_block=8_000, median_length=200)
    assert padding_share(corpus, sequence_length) < 0.02


def test_padding_on_real_articles(shared_data: Path, tmp_path: Path) -> None:
    """Lengths of real articles, at four characters a token."""
    with lzma.open(shared_data / "corpus" / "da.jsonl.xz", "rt", encoding="utf-8") as file:
        lengths = [1 + len(json.loads(line)["text"]) // 4 for line in islice(file, 1500)]
    documents = ((str(index), np.full(length, 7)) for index, length in enumerate(lengths))
    shards = write_shards(tmp_path, "da", "train", documents, vocab_size=100, tokens_per_shard=100_000)
    Manifest(shards=tuple(shards), vocab_size=100, token_dtype="uint16", tokenizer_sha256="", unigram_entropy={}).save(
        tmp_path
    )
    assert padding_share(tmp_path, 512) < 0.02


@pytest.mark.parametrize("exponent", [1.0, 0.3, [(0.0, 1.0), (1.0, 0.0)]])
def test_mixture_is_followed(corpus: Path, exponent: Any) -> None:
    manifest = Manifest.load(corpus)
    run_tokens = 3_000_000
    plan = Plan(manifest, manifest.languages, seed=3, run_tokens=run_tokens, exponent=exponent)
    drawn = np.zeros(3)
    target = np.zeros(3)
    largest = max(shard.tokens + 2 * shard.documents for shard in manifest.shards)
    index = 0
    while drawn.sum() < run_tokens:
        shares = plan.mixture(drawn.sum() / run_tokens)
        draw = plan[index]
        tokens = draw.shard.tokens + 2 * draw.shard.documents
        target += shares * tokens
        drawn[draw.language] += tokens
        # A language is ahead by less than one shard and what it lacked when it was drawn.
        assert (drawn - target).max() < 2 * largest
        assert (target - drawn).max() < 6 * largest
        index += 1
    order = np.array([plan[i].language for i in range(index)])
    agreement = [(order[period:] == order[:-period]).mean() for period in range(1, 65)]
    assert max(agreement) < 0.9, "the draws follow a rigid pattern"


def test_epochs_are_whole_permutations(corpus: Path) -> None:
    manifest = Manifest.load(corpus)
    plan = Plan(manifest, manifest.languages, seed=3, run_tokens=1_000_000, exponent=0.0)
    draws: dict[tuple[int, int], list[str]] = defaultdict(list)
    for index in range(400):
        draw = plan[index]
        draws[draw.language, draw.epoch].append(draw.shard.path)
    for language, code in enumerate(manifest.languages):
        paths = [shard.path for shard in manifest.shards_of(code)]
        epochs = [draws[language, epoch] for epoch in range(1 + max(e for l_, e in draws if l_ == language))]
        assert len(epochs) > 2
        for order in epochs[:-1]:
            assert sorted(order) == paths
        assert len(epochs[-1]) == len(set(epochs[-1]))
        if len(paths) > 3:
            assert epochs[0] != epochs[1]


def test_capped_languages_leave_the_mixture(corpus: Path) -> None:
    manifest = Manifest.load(corpus)
    smallest = manifest.languages.index("is")
    run_tokens = sum(map(manifest.tokens, manifest.languages))
    plan = Plan(manifest, manifest.languages, seed=3, run_tokens=run_tokens, exponent=0.3, max_epochs=1.0)
    num_shards = sum(shard.split == "train" for shard in manifest.shards)
    draws = [plan[index] for index in range(num_shards)]
    assert len({draw.shard.path for draw in draws}) == num_shards
    last_of_smallest = max(i for i, draw in enumerate(draws) if draw.language == smallest)
    assert last_of_smallest < num_shards // 2
    assert plan.epochs(1.0).max() <= 1


def test_languages_join_at_their_start(corpus: Path) -> None:
    manifest = Manifest.load(corpus)
    run_tokens = 1_000_000
    starts = [0.0, 0.4, 0.0]
    plan = Plan(manifest, manifest.languages, seed=3, run_tokens=run_tokens, exponent=0.3, starts=starts)
    assert plan.mixture(0.39)[1] == 0
    assert plan.epochs(0.4)[1] == 0
    # From then on it gets its share, and does not make up for what it missed.
    tokens = sum(shard.tokens + 2 * shard.documents for shard in manifest.shards_of("fi"))
    drawn = (plan.epochs(1.0) - plan.epochs(0.4))[1] * tokens
    expected = plan.mixture(0.5)[1] * 0.6 * run_tokens
    largest = max(shard.tokens + 2 * shard.documents for shard in manifest.shards)
    assert abs(drawn - expected) < 6 * largest
    # A window of 4,000 tokens is drawn at once, 0.04 of the run.
    config = StreamConfig(lanes=1, window_shards=1, language_starts={"fi": 0.5})
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    for step in Stream(corpus, config, seed=3, timeline=Timeline(100_000, 8, 64)).steps():
        seen[step.step.progress < 0.45] |= set(step.sequences.document_languages.tolist())
    assert seen == {True: {0, 2}, False: {0, 1, 2}}


def test_document_shares_match_the_batches(corpus: Path) -> None:
    timeline = Timeline(200_000, 8, 64)
    stream = Stream(corpus, StreamConfig(lanes=4, sampling_exponent=0.5), seed=2, timeline=timeline)
    counts = np.zeros(3)
    for step in stream.steps():
        (batch,) = step.micro_batches(8)
        counts += np.bincount(batch.document_languages.numpy(), minlength=3)
    # The expectation assumes exponential lengths and the lanes hold whole shards, so within a quarter is close.
    np.testing.assert_allclose(counts / counts.sum(), stream.document_shares(0.5), rtol=0.25)
    assert stream.epochs(1.0)[stream.languages.index("is")] > 1
