"""``unibert bench stream`` on a corpus of 120,000 tokens. Workers take seconds to start, so few are started."""

from __future__ import annotations

import csv
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.stream.conftest import VOCAB_SIZE, write_corpus
from unibert.bench.process_memory import CLEAR_REFS
from unibert.bench.stream.goals import evaluate_stream_goals
from unibert.bench.stream.peers import standard_collator, vectorised_masking
from unibert.bench.stream.plan import measure_plan, measure_resume
from unibert.bench.stream.providers import STREAM_PROVIDERS
from unibert.bench.stream.waits import measure_waits
from unibert.bench.stream.work import Delivery, Work, prepare_sequences
from unibert.bench.stream.worker import measure_pass, tune
from unibert.cli import main
from unibert.corpus.special_ids import OWN_SPECIAL_IDS as SPECIAL
from unibert.stream.config import StreamConfig
from unibert.stream.reader import read_blocks
from unibert.stream.sequences import NOT_MASKED
from unibert.stream.source import ShardSource

SEQUENCE_LENGTH, BATCH_SIZE = 128, 8
PACKAGES = {"WebDataset": "webdataset", "MosaicML": "mosaicml-streaming", "Hugging Face": "datasets"}
PEERS = [each for each in STREAM_PROVIDERS if each.side == "peer"]
STAGES = [each for each in STREAM_PROVIDERS if each.side == "stage"]


def is_installed(provider_name):
    package = next(package for word, package in PACKAGES.items() if provider_name.startswith(word))
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("bench") / "corpus", {"da": 640, "fi": 160, "is": 40})


@pytest.fixture(scope="module")
def work(corpus, tmp_path_factory):
    return Work(
        corpus=str(corpus),
        folder=str(tmp_path_factory.mktemp("copies")),
        sequence_length=SEQUENCE_LENGTH,
        batch_size=BATCH_SIZE,
        masking_rate=0.3,
        seed=0,
    )


@pytest.fixture(scope="module")
def facts(work):
    return prepare_sequences(work)


@pytest.fixture(scope="module")
def documents(work):
    """Tokens of every train document by origin."""
    source, documents = ShardSource(Path(work.corpus), StreamConfig()), {}
    for shard in work.shards:
        for block in read_blocks(source, shard, VOCAB_SIZE):
            named = zip(block.ids, block.documents(), strict=True)
            documents |= {f"{shard.path}#{name}": tokens for name, tokens in named}
    return documents


@pytest.fixture(scope="module")
def prepared():
    """``prepare`` functions that have written their copy of the corpus."""
    return set()


def histogram(tokens):
    return np.bincount(np.concatenate([np.ravel(part) for part in tokens]), minlength=VOCAB_SIZE)


def unmasked(batch):
    ids, labels = (batch[name] if isinstance(batch, dict) else getattr(batch, name) for name in ("input_ids", "labels"))
    return torch.where(labels == NOT_MASKED, ids, labels).numpy()


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """Folder and standard output of a run of the command line."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        words = ["--providers", '["1 loader", "on our shards", "MosaicML"]', "--repeats", "1", "--plan", "false"]
        words += ["--waits_seconds", "0.2"]
        words += ["--sequence_length", str(SEQUENCE_LENGTH), "--batch_size", str(BATCH_SIZE), "--output", str(folder)]
        main(["bench", "stream", str(corpus), *words])
    return folder, "\n".join(lines)


def test_table_json_csv_and_plot_hold_every_provider(run, facts):
    folder, text = run
    results = json.loads((folder / "results.json").read_text())
    assert results["benchmark"] == "stream"
    assert results["environment"]["versions"]["webdataset"]
    assert results["corpus"] == facts
    assert [(row["loader_processes"], row["cold"]) for row in results["waits"]] == [
        (0, False),
        (0, True),
        (1, False),
        (1, True),
    ]
    assert "1 loader processes, cold cache" in text
    rows = {row["provider"]: row for row in results["rows"]}
    assert list(rows) == ["UniBERT, 1 loader process", "WebDataset on our shards", "MosaicML Streaming"]
    for name in ("UniBERT, 1 loader process", "WebDataset on our shards"):
        row = rows[name]
        assert row["status"] == "ran"
        assert row["tokens"] >= facts["delivered_tokens"] * 0.99
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        assert 0 < row["first_batch_seconds"] < row["seconds"]
        assert row["tokens_per_cpu_second"] > 0
        assert name in text
    assert 0 < rows["UniBERT, 1 loader process"]["padding_share"] < 0.2
    assert rows["WebDataset on our shards"]["padding_share"] == 0
    options = {line["option"] for line in results["tuning"] if line["provider"] == "WebDataset on our shards"}
    assert options == {"sequences shuffled", "documents shuffled"}
    assert rows["WebDataset on our shards"]["option"] in options
    with (folder / "results.csv").open() as stream:
        assert [row["provider"] for row in csv.DictReader(stream)] == list(rows)
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")


def test_the_row_of_a_missing_peer_holds_the_reason(run):
    folder, text = run
    rows = {row["provider"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}
    row = rows["MosaicML Streaming"]
    if is_installed("MosaicML Streaming"):
        assert row["status"] == "ran"
    else:
        assert (row["status"], row["why"]) == ("not run", "mosaicml-streaming is not installed")
        assert "MosaicML Streaming: not run: mosaicml-streaming is not installed" in text


def test_results_can_be_shown_again(run, capsys):
    folder, _ = run
    main(["bench", "show", str(folder)])
    assert "WebDataset on our shards" in capsys.readouterr().out


@pytest.mark.parametrize("provider", PEERS, ids=lambda each: each.name)
def test_a_peers_pass_contains_the_corpus_once(provider, work, facts, documents, prepared):
    if not is_installed(provider.name):
        pytest.skip("the peer is not installed")
    if provider.prepare is not None and provider.prepare not in prepared:
        provider.prepare(work)
        prepared.add(provider.prepare)
    expected = histogram([np.concatenate(list(documents.values()))])
    expected[[*SPECIAL.prefix, *SPECIAL.suffix]] = len(documents)
    for option, source in provider.sources(work).items():
        deliveries = list(source())
        batches = [batch for delivery in deliveries for batch in delivery.batches]
        found = histogram([unmasked(batch) for batch in batches])
        assert sum(delivery.tokens for delivery in deliveries) == found.sum()
        # An incomplete sequence is dropped; MosaicML repeats some to give each of its 64 nodes the same number.
        repeated = 64 * SEQUENCE_LENGTH if provider.name.startswith("MosaicML") else 0
        assert (expected - found).clip(min=0).sum() < SEQUENCE_LENGTH, option
        assert (found - expected).clip(min=0).sum() <= repeated, option
        assert all(batch["input_ids"].shape[1] == SEQUENCE_LENGTH for batch in batches)
        assert {len(batch["input_ids"]) for batch in batches[:-1]} == {BATCH_SIZE}
        masked = np.mean([(batch["labels"] != NOT_MASKED).float().mean() for batch in batches])
        # The standard deviation for about 100,000 tokens at a rate of 0.3 is 0.0015.
        assert masked == pytest.approx(0.3, abs=0.02), option


def test_unibert_delivers_whole_documents_of_the_corpus(work, facts, documents):
    (source,) = next(each for each in STREAM_PROVIDERS if each.name == "UniBERT").sources(work).values()
    tokens, whole = 0, 0
    for delivery in source():
        tokens += delivery.tokens
        assert delivery.tokens == sum(int((batch.document_ids >= 0).sum()) for batch in delivery.batches)
        assert delivery.positions == sum(batch.input_ids.numel() for batch in delivery.batches)
        for batch in delivery.batches:
            flat, bounds = unmasked(batch).ravel(), batch.cu_seqlens.tolist()
            framed = [flat[begin:end] for begin, end in pairwise(bounds) if flat[begin] == SPECIAL.prefix[0]]
            origins = [origin for sequence in batch.origins for origin in sequence]
            for tokens_of_document, origin in zip(framed, origins, strict=True):
                if len(documents[origin]) <= SEQUENCE_LENGTH - 2:
                    np.testing.assert_array_equal(tokens_of_document[1:-1], documents[origin])
                    whole += 1
        if tokens >= facts["delivered_tokens"]:
            break
    assert whole > len(documents) / 2


@pytest.mark.parametrize("stage", STAGES, ids=lambda each: each.name)
def test_a_stage_counts_its_tokens(stage, work, facts, documents):
    (source,) = stage.sources(work).values()
    tokens = 0
    for delivery in source():
        (product,) = delivery.batches
        tokens += delivery.tokens
        if stage.name.endswith("packing"):
            assert delivery.tokens == product.document_lengths.sum()
            assert (product.input_ids != 0).sum() == delivery.tokens
        if stage.name.endswith("batches"):
            assert delivery.tokens == (product.document_ids >= 0).sum()
        if tokens >= facts["delivered_tokens"] and not stage.name.endswith("reading"):
            return
    assert tokens == sum(len(document) + 2 for document in documents.values())


def test_both_kinds_of_masking_leave_special_tokens_unmasked(work, facts):
    sequences = np.array(work.sequences())
    tensors = [torch.from_numpy(sequence.astype(np.int64)) for sequence in sequences]
    for batch in (vectorised_masking(work)(sequences), dict(standard_collator(work)(tensors))):
        np.testing.assert_array_equal(unmasked(batch), sequences)
        masked = batch["labels"] != NOT_MASKED
        assert not np.isin(sequences[masked.numpy()], SPECIAL.special).any()
        # Standard deviations: 0.0015 of the rate, 0.003 of the shares.
        assert float(masked.float().mean()) == pytest.approx(0.3, abs=0.02)
        shown = batch["input_ids"][masked]
        assert float((shown == SPECIAL.mask).float().mean()) == pytest.approx(0.8, abs=0.02)
        assert float((shown == batch["labels"][masked]).float().mean()) == pytest.approx(0.1, abs=0.02)
        assert int(shown.max()) < VOCAB_SIZE


def test_an_option_that_fails_is_not_chosen(work, facts):
    provider = next(each for each in STREAM_PROVIDERS if each.name == "stage: reading")

    def refusing():
        raise RuntimeError("not like this")

    found = tune({"refused": refusing, "": provider.sources(work)[""]}, facts["delivered_tokens"], 5.0)
    assert found["failures"] == {"refused": "not like this"}
    assert list(found["rates"]) == [""]
    with pytest.raises(RuntimeError, match="not like this"):
        tune({"refused": refusing}, facts["delivered_tokens"], 5.0)


def test_a_pass_is_measured_to_its_end(work, facts):
    provider = next(each for each in STREAM_PROVIDERS if each.name == "UniBERT")
    row = measure_pass(provider.sources(work)[""], facts["delivered_tokens"])
    step = 8 * BATCH_SIZE * SEQUENCE_LENGTH
    assert facts["delivered_tokens"] <= row["tokens"] < facts["delivered_tokens"] + step
    assert 0 < row["first_batch_seconds"] < row["seconds"]


def hungry():
    yield Delivery(1, 1, [np.ones(2**26, dtype=np.uint8)])
    yield Delivery(1, 1, [])


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="memory is counted by Linux")
def test_memory_of_a_pass_is_its_peak():
    # A process of its own, as in the benchmark: this one may hold pages of earlier tests, which a pass would reuse.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        memory = process.submit(measure_pass, hungry, 2).result()["memory_bytes"]
    # Threads of the libraries may allocate some.
    assert memory == pytest.approx(2**26, rel=0.25)


def test_planning_resuming_and_waits_are_measured(work, facts):
    plan = measure_plan(num_languages=5, num_shards=60, run_tokens=20_000_000)
    assert list(plan["resume_seconds"]) == ["0.1", "0.5", "0.99"]
    assert min(plan["resume_seconds"].values()) > 0
    # Planning a step takes three draws of several numpy calls each.
    assert plan["step_seconds"] > 1e-6
    assert plan["share_of_step"] == plan["step_seconds"] / 0.1
    waits = measure_waits(work, 0, 0.8, cold=True)
    assert waits["steps"] == 20
    assert waits["windows"] > 0
    assert 0 < waits["mean_wait"] < waits["longest_wait"]
    assert waits["share"] == waits["mean_wait"] / 0.04
    assert waits["share"] < waits["share_of_ranks"] <= waits["longest_wait"] / 0.04
    resumed = measure_resume(work)
    assert resumed["seconds"] > 0
    assert resumed["step"] > 1


def goals(ours, usual, bulk, *, slowest=1.0, share=0.001):
    def row(name, setting, rate):
        side = "ours" if setting == "fixed" else "peer"
        figures = {"option": "", "status": "ran", "tokens_per_second": rate}
        return {"provider": name, "side": side, "setting": setting, **figures}

    plan = {"run_tokens": 10**10, "languages": 107, "shards": 30_000, "ranks": 64, "share_of_step": share}
    results = {
        "corpus": {"tokens": 10**6, "languages": 3},
        "rows": [row("UniBERT", "fixed", ours), row("one", "usual", usual), row("many", "bulk", bulk)],
        "plan": plan | {"resume_seconds": {"0.1": 0.5, "0.99": slowest}},
    }
    return [goal.met for goal in evaluate_stream_goals(results)]


def test_goals_follow_from_the_figures():
    assert goals(9e6, 2e6, 2.2e6) == [True] * 5
    assert goals(7e6, 1e6, 1e6) == [False, True, True, True, True]
    assert goals(9e6, 2e6, 2.5e6) == [True, True, False, True, True]
    assert goals(9e6, 2.5e6, 2e6) == [True, False, False, True, True]
    assert goals(9e6, 2e6, 2e6, slowest=2.1) == [True, True, True, False, True]
    assert goals(9e6, 2e6, 2e6, share=0.01) == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere/manifest.json: no such file"),
        (["/nowhere", "--repeats", "0"], "repeats: must be at least 1"),
        (["/nowhere", "--waits_seconds", "-1"], "waits_seconds: must not be negative"),
        (["/nowhere", "--masking_rate", "0"], "masking_rate: must lie above 0"),
        (["/nowhere", "--tuning_seconds", "0"], "tuning_seconds: must be positive"),
        (["CORPUS", "--providers", '["Mosaik"]'], "no provider matches Mosaik"),
    ],
)
def test_mistakes_give_one_line_errors(arguments, message, corpus, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "stream", *(str(corpus) if word == "CORPUS" else word for word in arguments)])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("unibert: error: ")
    assert error.count("\n") == 1
