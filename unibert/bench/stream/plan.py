"""How long the stream takes to resume in a long run, and what planning costs a step."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from unibert.bench.stream.providers import stream_config, timeline
from unibert.bench.stream.work import Work
from unibert.corpus.manifest import Manifest, Shard
from unibert.schedules import Timeline
from unibert.stream.config import StreamConfig
from unibert.stream.stream import Stream

NUM_LANGUAGES, NUM_SHARDS, RUN_TOKENS = 107, 30_000, 10_000_000_000
RANKS, STEP_SEQUENCES, SEQUENCE_LENGTH = 64, 2048, 512
STEP_SECONDS = 0.1
PROGRESSES = (0.1, 0.5, 0.99)
SIZE_EXPONENT = 1.5
"""The n-th largest language has n ** -1.5 of the largest's tokens: 1,100 to 1 over 107 languages."""
TOKENS_PER_DOCUMENT = 400


def simulated_corpus(folder: Path, *, num_languages: int, num_shards: int, tokens: int) -> None:
    """A manifest of ``tokens`` tokens in all, and empty files where its shards would lie."""
    shares = np.arange(1, num_languages + 1) ** -SIZE_EXPONENT
    shares /= shares.sum()
    counts = np.maximum(1, np.round(shares * num_shards).astype(int))
    counts[0] += num_shards - counts.sum()
    shards = []
    for number, (share, count) in enumerate(zip(shares.tolist(), counts.tolist(), strict=True)):
        size = max(1, int(tokens * share / count))
        language = f"l{number:03d}"
        (folder / language).mkdir()
        for index in range(count):
            path = f"{language}/train-{index:06d}.tar"
            (folder / path).touch()
            shard = Shard(
                path=path,
                language=language,
                split="train",
                documents=size // TOKENS_PER_DOCUMENT + 1,
                blocks=size // 2**16 + 1,
                tokens=size,
                text_bytes=4 * size,
                size_bytes=0,
                sha256="0" * 64,
            )
            shards.append(shard)
    Manifest(
        shards=tuple(shards), vocab_size=2**16, token_dtype="uint16", tokenizer_sha256="0" * 64, unigram_entropy={}
    ).save(folder)


def measure_plan(
    num_languages: int = NUM_LANGUAGES, num_shards: int = NUM_SHARDS, run_tokens: int = RUN_TOKENS
) -> dict[str, Any]:
    """What one of `RANKS` ranks does before it can read: manifest, shards looked for, plan up to where the run stood.

    Returns:
        "resume_seconds" by progress; "step_seconds" of planning a step of 1 M tokens, over the whole run, and
        "share_of_step" of a step of 100 ms; the sizes.
    """
    steps = Timeline(run_tokens, STEP_SEQUENCES, SEQUENCE_LENGTH)
    seconds, planning = {}, 0.0
    with tempfile.TemporaryDirectory(prefix="unibert-bench-") as name:
        simulated_corpus(Path(name), num_languages=num_languages, num_shards=num_shards, tokens=run_tokens)
        for progress in PROGRESSES:
            begun = time.perf_counter()
            stream = Stream(name, StreamConfig(lanes=RANKS), seed=0, timeline=steps, rank=RANKS // 2, world_size=RANKS)
            # A saved state is only taken by the stream whose fingerprint it bears.
            _ = stream.fingerprint
            built = time.perf_counter()
            stream.epochs(progress)
            seconds[str(progress)] = time.perf_counter() - begun
            planning = time.perf_counter() - built
    step_seconds = planning / (PROGRESSES[-1] * len(steps))
    return {
        "languages": num_languages,
        "shards": num_shards,
        "run_tokens": run_tokens,
        "ranks": RANKS,
        "step_tokens": STEP_SEQUENCES * SEQUENCE_LENGTH,
        "resume_seconds": seconds,
        "step_seconds": step_seconds,
        "share_of_step": step_seconds / STEP_SECONDS,
    }


def measure_resume(work: Work) -> dict[str, Any]:
    """Half a pass through the real corpus, then the same stream anew with the state that it had.

    Returns:
        "seconds" from nothing to the batches of the next step, all lanes' windows read again; "step".
    """
    steps = timeline(work)
    stream = Stream(work.corpus, stream_config(work), seed=work.seed, timeline=steps)
    middle = len(steps) // 4
    state: dict[str, Any] = {}
    for step in stream.steps():
        state = step.state
        if step.step.index >= middle:
            break
    begun = time.perf_counter()
    stream = Stream(work.corpus, stream_config(work), seed=work.seed, timeline=steps)
    following = next(stream.steps(middle + 1, state))
    following.micro_batches(work.batch_size)
    return {"seconds": time.perf_counter() - begun, "step": middle + 1}
