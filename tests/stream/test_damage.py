"""Bad input raises an error of one sentence or is skipped and counted."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibert.corpus.manifest import Manifest, Shard
from unibert.errors import UserError
from unibert.schedules import Timeline
from unibert.stream import Stream, StreamConfig

TIMELINE = Timeline(40_000, 8, 64)
CONFIG = StreamConfig(lanes=2, window_shards=2)


def consume(corpus: Path, config: StreamConfig = CONFIG, **arguments: Any) -> tuple[dict[str, int], list[str]]:
    skipped: dict[str, int] = {}
    digests = []
    for step in Stream(corpus, config, seed=0, timeline=TIMELINE, **arguments).steps():
        digests += [batch.digest() for batch in step.micro_batches(4)]
        for path, count in step.skipped.items():
            skipped[path] = skipped.get(path, 0) + count
    return skipped, digests


def train_shards(corpus: Path) -> list[Shard]:
    return [shard for shard in Manifest.load(corpus).shards if shard.split == "train"]


def damage_truncate(raw: bytes) -> bytes:
    # In the middle of the last block's tokens.
    return raw[: raw.rindex(b".tokens.npy") + 700]


def damage_payload(raw: bytes) -> bytes:
    # Within the tokens of the first block: a tar header, the .npy header, then the data.
    return raw[:700] + bytes([raw[700] ^ 0x10]) + raw[701:]


def damage_header(raw: bytes) -> bytes:
    # The tar header of the second block, which a reader must take for the end of the file.
    at = raw.index(b"000001.tokens.npy")
    return raw[:at] + b"X" + raw[at + 1 :]


def damage_everything(raw: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(raw))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("damage", "blocks_left"),
    [(damage_truncate, -1), (damage_payload, -1), (damage_header, 1), (damage_everything, 0)],
)
def test_damaged_shards_are_counted_and_skipped(
    make_corpus: Callable[..., Path], damage: Any, blocks_left: int, num_workers: int
) -> None:
    corpus = make_corpus({"da": 120})
    victim = train_shards(corpus)[0]
    path = corpus / victim.path
    path.write_bytes(damage(path.read_bytes()))
    skipped, digests = consume(corpus, StreamConfig(lanes=2, window_shards=2, num_workers=num_workers))
    assert list(skipped) == [victim.path]
    lost_per_reading = victim.blocks - blocks_left % victim.blocks
    assert skipped[victim.path] % lost_per_reading == 0
    assert skipped[victim.path] >= lost_per_reading
    assert len(digests) == sum(step.num_sequences for step in TIMELINE) // 4


def test_skips_are_reported_once_over_interruptions(make_corpus: Callable[..., Path]) -> None:
    corpus = make_corpus({"da": 120})
    path = corpus / train_shards(corpus)[0].path
    path.write_bytes(damage_truncate(path.read_bytes()))
    expected, _ = consume(corpus)
    total: dict[str, int] = {}
    state = None
    for index in range(len(TIMELINE)):
        step = next(Stream(corpus, CONFIG, seed=0, timeline=TIMELINE).steps(index, state))
        state = step.state
        for name, count in step.skipped.items():
            total[name] = total.get(name, 0) + count
    assert total == expected


def test_no_intact_block(make_corpus: Callable[..., Path]) -> None:
    corpus = make_corpus({"da": 40})
    for shard in train_shards(corpus):
        (corpus / shard.path).write_bytes(b"")
    with pytest.raises(UserError, match="no shard has an intact block"):
        consume(corpus)


def test_missing_shard_is_named_at_the_start(make_corpus: Callable[..., Path]) -> None:
    corpus = make_corpus({"da": 120})
    path = corpus / train_shards(corpus)[1].path
    path.unlink()
    with pytest.raises(UserError, match=f"{path}: missing shard; copy it there or build the corpus again"):
        Stream(corpus, CONFIG, seed=0, timeline=TIMELINE)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shard_that_disappears_is_named(make_corpus: Callable[..., Path], num_workers: int) -> None:
    corpus = make_corpus({"da": 120})
    config = StreamConfig(lanes=2, window_shards=2, num_workers=num_workers)
    steps = Stream(corpus, config, seed=0, timeline=TIMELINE).steps()
    for shard in train_shards(corpus):
        (corpus / shard.path).unlink()
    with pytest.raises(UserError, match=rf"^{corpus}/da/train-\d+\.tar: shard cannot be read \(No such file"):
        list(steps)


@pytest.mark.parametrize(
    ("config", "arguments", "sentence"),
    [
        (
            StreamConfig(lanes=8),
            {"world_size": 3},
            "stream.lanes: 8 lanes cannot be divided among 3 ranks; use 1, 2, 4, 8 ranks, or start a new run with "
            "stream.lanes a multiple of 3",
        ),
        (
            StreamConfig(lanes=3),
            {},
            "training.global_batch_size: 8 is not a multiple of stream.lanes (3); change one of them",
        ),
        (
            StreamConfig(lanes=2, languages=["da", "sv"]),
            {},
            "stream.languages: the corpus has no train shards of 'sv'; it has da, fi, is",
        ),
        (
            StreamConfig(lanes=2),
            {"timeline": Timeline(100, 2, 2)},
            "training.sequence_length: 2 leaves no room for text between the 2 special tokens that frame a document; "
            "raise it",
        ),
    ],
)
def test_error_sentences(corpus: Path, config: StreamConfig, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Stream(corpus, config, **{"seed": 0, "timeline": TIMELINE} | arguments)
    assert str(caught.value) == sentence


def test_caps_that_leave_too_little_are_refused(make_corpus: Callable[..., Path]) -> None:
    corpus = make_corpus({"da": 120})
    tokens = sum(shard.tokens for shard in train_shards(corpus))
    config = StreamConfig(lanes=2, max_epochs=1.0)
    with pytest.raises(UserError, match=r"stream.max_epochs: with every language read at most 1 times, one of"):
        Stream(corpus, config, seed=0, timeline=Timeline(2 * tokens, 8, 64))
    with pytest.raises(UserError, match=r"of the 64 lanes gets only 0% of the tokens that it needs"):
        Stream(corpus, StreamConfig(lanes=64, max_epochs=1.0), seed=0, timeline=Timeline(tokens // 4, 64, 64))
    stream = Stream(corpus, config, seed=0, timeline=Timeline(tokens // 2, 8, 64))
    assert [batch for step in stream.steps() for batch in step.micro_batches(8) if any(batch.origins)]
    assert stream.epochs(1.0).max() <= 1


def test_fewer_shards_than_lanes(make_corpus: Callable[..., Path]) -> None:
    corpus = make_corpus({"da": 12})
    assert len(train_shards(corpus)) < 8
    timeline = Timeline(20_000, 8, 64)
    counts = [
        [step.sequences.num_sequences for step in stream.steps()]
        for stream in (
            Stream(corpus, StreamConfig(lanes=8), seed=0, timeline=timeline, rank=rank, world_size=4)
            for rank in range(4)
        )
    ]
    assert counts == [[2] * len(timeline)] * 4


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"timeline": Timeline(40_000, 8, 48)}]
    + [
        {"config": StreamConfig(**{"lanes": 2, "window_shards": 2} | changes)}
        for changes in ({"lanes": 4}, {"window_shards": 1}, {"masking_rate": 0.2}, {"languages": ["da", "fi"]})
    ],
)
def test_state_of_another_stream_is_refused(corpus: Path, other: dict[str, Any]) -> None:
    step = next(Stream(corpus, CONFIG, seed=0, timeline=TIMELINE).steps())
    arguments = {"config": CONFIG, "seed": 0, "timeline": TIMELINE} | other
    stream = Stream(corpus, **arguments)
    with pytest.raises(UserError, match="saved state belongs to another corpus, seed, stream configuration or sched"):
        next(stream.steps(1, step.state))


def test_state_of_another_corpus_is_refused(corpus: Path, make_corpus: Callable[..., Path]) -> None:
    step = next(Stream(corpus, CONFIG, seed=0, timeline=TIMELINE).steps())
    stream = Stream(make_corpus({"da": 640, "fi": 160, "is": 41}), CONFIG, seed=0, timeline=TIMELINE)
    with pytest.raises(UserError, match="saved state belongs to another corpus"):
        next(stream.steps(1, step.state))


def test_state_without_the_lanes_of_another_rank_is_refused(corpus: Path) -> None:
    step = next(Stream(corpus, CONFIG, seed=0, timeline=TIMELINE, rank=0, world_size=2).steps())
    stream = Stream(corpus, CONFIG, seed=0, timeline=TIMELINE)
    with pytest.raises(UserError, match="saved state has no lane 1; merge the states of all ranks"):
        next(stream.steps(1, step.state))


def test_delivery_may_change_when_a_run_is_resumed(corpus: Path) -> None:
    step = next(Stream(corpus, CONFIG, seed=0, timeline=TIMELINE).steps())
    moved = StreamConfig(lanes=2, window_shards=2, shards_url=str(corpus), retry_seconds=1, num_workers=1)
    assert next(Stream(corpus, moved, seed=0, timeline=TIMELINE).steps(1, step.state)).step.index == 1


@pytest.mark.parametrize(
    ("starts", "sentence"),
    [
        ({"dn": 0.5}, r"stream\.language_starts\.dn: the run does not train on it, only on da, fi, is"),
        ({"da": 0.1, "fi": 0.5, "is": 0.9}, "no language takes part from the start; let at least one start at 0"),
    ],
)
def test_languages_that_cannot_join(corpus: Path, starts: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Stream(corpus, StreamConfig(lanes=2, language_starts=starts), seed=0, timeline=TIMELINE)


def test_caps_that_leave_nothing_before_others_join_are_refused(corpus: Path) -> None:
    config = StreamConfig(lanes=2, max_epochs=1, language_starts={"da": 0.7})
    tokens = sum(Manifest.load(corpus).tokens(code) for code in ("da", "fi", "is"))
    with pytest.raises(UserError, match=r"stream\.max_epochs: .* raise stream\.max_epochs"):
        Stream(corpus, config, seed=0, timeline=Timeline(tokens // 2, 8, 64))


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("stream.lanes", {"lanes": 0}),
        ("stream.num_workers", {"num_workers": -1}),
        ("stream.prefetch_steps", {"prefetch_steps": 0}),
        ("stream.masking_rate", {"masking_rate": [(0.0, 0.3), (1.0, -0.1)]}),
        ("stream.masking_rate", {"masking_rate": [(1.0, 0.3), (0.0, 0.2)]}),
        ("stream.mask_share", {"mask_share": 0.8, "random_share": 0.3}),
        ("stream.sampling_exponent", {"sampling_exponent": -0.1}),
        ("stream.max_epochs", {"max_epochs": 0.5}),
        ("stream.languages", {"languages": []}),
        ("stream.language_starts.da", {"language_starts": {"da": 1.0}}),
        ("stream.max_damaged_share", {"max_damaged_share": 1.5}),
        ("stream.retry_seconds", {"retry_seconds": -1.0}),
        ("stream.cache_gib", {"cache_gib": 0.0, "cache_dir": "cache"}),
        ("stream.cache_gib", {"cache_gib": 10.0}),
        ("stream.shards_url", {"shards_url": "pipe:cat /data/corpus", "allow_pipe": True}),
    ],
)
def test_invalid_values_are_refused(key: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{key}: "):
        StreamConfig(**fields)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


SCRIPT = """
    import sys, time
    from unibert.schedules import Timeline
    from unibert.stream import Stream, StreamConfig
    # Sequences larger than a pipe's buffer, so that the loader processes are caught in the middle of sending.
    timeline = Timeline(10_000_000, 512, 64)
    steps = Stream(sys.argv[1], StreamConfig(lanes=2, num_workers=2), seed=0, timeline=timeline).steps()
    next(steps)
    print("ready", flush=True)
    sys.stdin.readline()
    for index in range(4):
        next(steps)
    print("done", flush=True)
"""


@pytest.fixture
def consumer(corpus: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process in the middle of a stream, waiting for a line, and its two loader processes."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(corpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    workers = children(process.pid)
    assert len(workers) == 2
    yield process, workers
    process.kill()
    for worker in filter(alive, workers):
        os.kill(worker, signal.SIGKILL)
    process.communicate()


Consumer = tuple[subprocess.Popen[str], list[int]]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux_only
def test_loader_processes_die_with_their_parent(consumer: Consumer) -> None:
    process, workers = consumer
    process.kill()
    assert wait_until_gone(workers, 60)


@linux_only
def test_loader_processes_ignore_signals_of_a_scheduler_and_may_be_stopped_early(consumer: Consumer) -> None:
    process, workers = consumer
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(worker, number)
    time.sleep(0.3)
    output, errors = process.communicate("go\n", timeout=120)
    assert output == "done\n", errors
    assert process.returncode == 0
    assert wait_until_gone(workers, 60)


@linux_only
def test_killed_loader_process_raises_an_error(consumer: Consumer) -> None:
    process, workers = consumer
    os.kill(workers[1], signal.SIGKILL)
    output, errors = process.communicate("go\n", timeout=120)
    assert process.returncode == 1
    assert output == ""
    assert "loader process" in errors or "DataLoader worker" in errors
