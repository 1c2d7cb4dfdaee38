"""The forecast of a run agrees with what its stream delivers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibert.corpus.manifest import Manifest, Shard
from unibert.errors import UserError
from unibert.schedules import Timeline
from unibert.stream import Stream, StreamConfig
from unibert.stream.forecast import MAX_PHASES, Forecast, loaders_warning, mixing_warning, phase_bounds, shards_warning

LATE = StreamConfig(
    lanes=2,
    window_shards=2,
    sampling_exponent=[(0.0, 1.0), (0.6, 1.0), (0.6, 0.3)],
    language_starts={"is": 0.3},
)


def forecast_of(corpus: Path, config: StreamConfig, timeline: Timeline, seed: int = 4) -> Forecast:
    return Forecast(Manifest.load(corpus), config, seed=seed, timeline=timeline)


@pytest.mark.parametrize("config", [LATE, replace(LATE, max_epochs=3.0)], ids=["free", "capped"])
def test_the_stream_delivers_what_the_forecast_says(make_corpus: Callable[..., Path], config: StreamConfig) -> None:
    corpus = make_corpus({"da": 640, "fi": 160, "is": 40}, tokens_per_shard=1000)
    manifest = Manifest.load(corpus)
    timeline = Timeline(150_000, 8, 128)
    stream = Stream(corpus, config, seed=4, timeline=timeline)
    forecast = forecast_of(corpus, config, timeline)
    delivered = np.zeros(3)
    for step in stream.steps():
        (batch,) = step.micro_batches(8)
        pieces = np.bincount(batch.document_ids[batch.document_ids >= 0].numpy())
        delivered += np.bincount(batch.document_languages.numpy(), weights=pieces - 2, minlength=3)
    shards = np.array([len(manifest.shards_of(language)) for language in stream.languages])
    tokens = np.array([manifest.tokens(language) for language in stream.languages])
    # In shards, the stream is off by what the lanes hold at the end. It is behind its plan by its padding and by the
    # frames of cut documents.
    planned = (forecast.epochs * tokens).sum()
    behind = (planned - delivered.sum()) / tokens.sum() * shards.sum()
    assert 0 < behind < 0.05 * forecast.num_draws + 4
    difference = np.abs(delivered / tokens - forecast.epochs) * shards
    assert difference.max() <= behind + config.lanes * config.window_shards


@pytest.mark.parametrize("config", [LATE, replace(LATE, max_epochs=2.0)], ids=["free", "capped"])
def test_epochs_agree_with_the_plan(make_corpus: Callable[..., Path], config: StreamConfig) -> None:
    # Frames matter most with short documents.
    corpus = make_corpus({"da": 640, "fi": 160, "is": 40}, tokens_per_shard=200, median_length=8)
    timeline = Timeline(20_000, 8, 64)
    stream = Stream(corpus, config, seed=4, timeline=timeline)
    forecast = forecast_of(corpus, config, timeline)
    assert forecast.languages == stream.languages
    for progress in np.linspace(0, 1, 8):
        assert forecast.epochs_at(progress).tolist() == stream.epochs(progress).tolist()
    assert forecast_of(corpus, config, timeline, seed=5).first_read != forecast.first_read


@pytest.mark.parametrize(("grown_at", "lengths"), [(0.3, [32, 64, 64, 128]), (0.6, [32, 32, 64, 128])])
def test_tokens_add_up_to_the_run(corpus: Path, grown_at: float, lengths: list[int]) -> None:
    forecast = forecast_of(corpus, LATE, Timeline(333_333, 8, [(0.0, 32), (grown_at, 64), (0.8, 128)]))
    assert forecast.tokens.sum() == forecast.run_tokens
    # The batch grows at a step just after 0.3, or just before 0.6, where the mixture changes.
    assert [phase.start for phase in forecast.phases] == [0.0, 0.3, 0.6, pytest.approx(0.8, abs=0.005)]
    assert [phase.end for phase in forecast.phases] == [*(phase.start for phase in forecast.phases[1:]), 1.0]
    np.testing.assert_array_equal(np.sum([phase.tokens for phase in forecast.phases], axis=0), forecast.tokens)
    np.testing.assert_array_equal(forecast.phases[-1].epochs, forecast.epochs)
    assert [phase.sequence_length for phase in forecast.phases] == lengths
    assert [phase.exponents for phase in forecast.phases] == [(1.0, 1.0), (1.0, 1.0), (0.3, 0.3), (0.3, 0.3)]


def test_shares_follow_the_schedules(make_corpus: Callable[..., Path]) -> None:
    corpus = make_corpus({"da": 640, "fi": 160, "is": 40}, tokens_per_shard=1000)
    forecast = forecast_of(corpus, LATE, Timeline(600_000, 8, 64))
    index = {language: forecast.languages.index(language) for language in ("da", "is")}
    before, joined, smoothed = forecast.phases
    assert before.tokens[index["is"]] == 0
    assert 0.3 <= forecast.first_read["is"] < 0.35
    assert forecast.first_read["da"] < 0.01
    # A phase of 180 shards or more meets its mixture within three of them.
    natural = forecast.natural_shares
    np.testing.assert_allclose(joined.shares, natural, atol=3 / 180)
    np.testing.assert_allclose(smoothed.shares, natural**0.3 / (natural**0.3).sum(), atol=3 / 180)


@pytest.mark.parametrize(
    ("exponent", "starts", "lengths", "expected"),
    [
        (0.7, {}, 64, [0, 1]),
        ([(0.0, 0.7), (0.5, 0.7), (0.5, 0.5), (0.9, 0.5), (0.9, 0.3)], {}, 64, [0, 0.5, 0.9, 1]),
        ([(0.0, 1.0), (1.0, 0.3)], {}, 64, [0, 0.5, 1]),
        ([(0.2, 1.0), (0.6, 0.3)], {}, 64, [0, 0.2, 0.4, 0.6, 1]),
        (0.7, {"is": 0.25, "fi": 0.0}, [(0.0, 32), (0.75, 64)], [0, 0.25, 0.75, 1]),
        ([(0.0, 0.7), (0.5, 0.7), (0.5, 0.5)], {}, [(0.0, 32), (0.5, 64)], [0, 0.5, 1]),
        (0.7, {str(i): i / 20 for i in range(20)}, 64, None),
    ],
)
def test_phases_lie_between_the_bounds_of_the_schedules(
    exponent: Any, starts: dict[str, float], lengths: Any, expected: list[float] | None
) -> None:
    # A batch of an odd size, so that steps do not end where the schedules bend.
    timeline = Timeline(1_000_003, 7, lengths)
    bounds = phase_bounds(StreamConfig(sampling_exponent=exponent, language_starts=starts), timeline)
    if expected is not None:
        assert bounds == pytest.approx(expected, abs=0.001)
    assert (bounds[0], bounds[-1]) == (0, 1)
    assert bounds == sorted(set(bounds))
    assert len(bounds) <= MAX_PHASES + 1


def test_documents_per_batch(corpus: Path) -> None:
    config, timeline = StreamConfig(lanes=4, sampling_exponent=0.5), Timeline(200_000, 8, 64)
    counts = np.zeros(3)
    for step in Stream(corpus, config, seed=2, timeline=timeline).steps():
        counts += np.bincount(step.micro_batches(8)[0].document_languages.numpy(), minlength=3)
    (phase,) = forecast_of(corpus, config, timeline).phases
    # The forecast assumes exponential lengths, which is nearly right, and the lanes hold whole shards.
    np.testing.assert_allclose(phase.documents_per_batch, counts / len(timeline), rtol=0.25)
    assert phase.documents_per_batch.sum() == pytest.approx(counts.sum() / len(timeline), rel=0.1)


def test_languages_read_often_or_never(make_corpus: Callable[..., Path]) -> None:
    corpus = make_corpus({"da": 640, "fi": 160, "is": 20})
    manifest = Manifest.load(corpus)
    run_tokens = 3 * sum(map(manifest.tokens, manifest.languages))
    smooth = StreamConfig(lanes=2, sampling_exponent=0.2)
    forecast = forecast_of(corpus, smooth, Timeline(run_tokens, 8, 64))
    repeated = forecast.often_repeated
    assert list(repeated) == ["is", "fi"]
    assert repeated["is"] > repeated["fi"] > 4 > forecast.epochs[forecast.languages.index("da")]
    assert forecast.reached_cap == {}
    natural = forecast_of(corpus, StreamConfig(lanes=2, sampling_exponent=3.0), Timeline(20_000, 8, 64))
    assert set(natural.first_read) == {"da"}


def test_when_a_language_reaches_its_cap(corpus: Path) -> None:
    manifest = Manifest.load(corpus)
    run_tokens = 2 * sum(map(manifest.tokens, manifest.languages))
    capped = StreamConfig(lanes=2, sampling_exponent=0.2, max_epochs=4.0)
    forecast = forecast_of(corpus, capped, Timeline(run_tokens, 8, 64))
    assert list(forecast.reached_cap) == ["is", "fi"]
    for language, progress in forecast.reached_cap.items():
        index = forecast.languages.index(language)
        assert forecast.epochs_at(progress)[index] == 4 == forecast.epochs[index]
        # Its last draw ends only then.
        assert forecast.tokens_between(progress - 1e-4, progress)[index] > 0
        assert forecast.tokens_between(progress, 1.0)[index] == 0


def test_languages_at_a_time(corpus: Path) -> None:
    timeline = Timeline(200_000, 8, 64)
    one_each = StreamConfig(lanes=1, window_shards=1)
    assert forecast_of(corpus, one_each, timeline).languages_at_a_time == (1, 1, 1)
    assert mixing_warning(one_each, 3) is not None
    wide = StreamConfig(lanes=8, window_shards=2, sampling_exponent=0.0)
    assert forecast_of(corpus, wide, timeline).languages_at_a_time == (3, 3, 3)
    assert mixing_warning(wide, 16) is None
    assert str(mixing_warning(wide, 17)).startswith("8 lanes of 2 shards mix at most 16 of the corpus's 17 languages")
    # A run that ends within its first draw.
    assert forecast_of(corpus, wide, Timeline(1024, 8, 64), seed=5).languages_at_a_time[2] == 1


def test_loader_processes_without_a_lane() -> None:
    config = StreamConfig(lanes=64, num_workers=2)
    assert loaders_warning(config, 32) is None
    assert loaders_warning(config, 64) == (
        "stream.num_workers is 2, but 64 lanes on 64 ranks leave 1 for each, so a rank has 1 loader process"
    )


def test_shortage_is_the_error_of_the_stream(corpus: Path) -> None:
    config, timeline = StreamConfig(lanes=2, max_epochs=1.0), Timeline(1_000_000, 8, 64)
    with pytest.raises(UserError, match=r"stream\.max_epochs") as refused:
        Stream(corpus, config, seed=4, timeline=timeline)
    forecast = forecast_of(corpus, config, timeline)
    assert forecast.shortage == str(refused.value)
    assert forecast.tokens.sum() == timeline.total_tokens
    assert forecast_of(corpus, config, Timeline(20_000, 8, 64)).shortage is None


@pytest.mark.parametrize(
    ("config", "length", "sentence"),
    [
        (StreamConfig(languages=["da", "sv"]), 64, r"stream\.languages: the corpus has no train shards of 'sv'"),
        (StreamConfig(language_starts={"sv": 0.5}), 64, r"stream\.language_starts\.sv: "),
        (StreamConfig(), 2, r"training\.sequence_length: 2 leaves no room"),
    ],
)
def test_a_forecast_refuses_what_streams_refuse(corpus: Path, config: StreamConfig, length: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        forecast_of(corpus, config, Timeline(10_000, 8, length))


def test_a_corpus_of_needlessly_many_shards() -> None:
    def warning(num_shards: int, tokens: int) -> str | None:
        shards = tuple(
            Shard(
                path=f"da/train-{number:06d}.tar",
                language="da",
                split="train",
                documents=1,
                blocks=1,
                tokens=tokens,
                text_bytes=1,
                size_bytes=1,
                sha256="",
            )
            for number in range(num_shards)
        )
        manifest = Manifest(
            shards=shards, vocab_size=1000, token_dtype="uint16", tokenizer_sha256="", unigram_entropy={}
        )
        return shards_warning(manifest, ["da"])

    assert warning(9_999, 20_000) is None
    assert warning(10_000, 400_000) is not None
    assert warning(10_000, 400_400) is None
    assert warning(20_000, 20_000) == (
        "the corpus has 20,000 train shards of 20,000 tokens on average, which slow down starts and windows; built "
        "with --tokens_per_shard 4000000, it would have 100"
    )
