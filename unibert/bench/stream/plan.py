"""Time to resume the stream in a long run, and the cost of planning per step."""

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
RESUME_POINTS = (0.1, 0.5, 0.99)
"""Shares of the run at which it is resumed."""
SIZE_EXPONENT = 1.5
"""The n-th largest language has n ** -1.5 of the tokens of the largest: 1,100 to 1 over 107 languages."""
TOKENS_PER_DOCUMENT = 400


def write_simulated_corpus(folder: Path, *, num_languages: int, num_shards: int, tokens: int) -> None:
    """Write a manifest of ``tokens`` tokens in total, and empty files in the place of its shards."""
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


def measure_plan(num_languages: int, num_shards: int, run_tokens: int) -> dict[str, Any]:
    """Time what one of `RANKS` ranks does before it reads: load the manifest, find the shards, plan up to the resume
    point.

    Returns:
        "resume_seconds" by resume point; "step_seconds", the mean time to plan a step of 1 M tokens, and
        "share_of_step", its share of a step of 100 ms; the sizes.
    """
    steps = Timeline(run_tokens, STEP_SEQUENCES, SEQUENCE_LENGTH)
    seconds, planning = {}, 0.0
    with tempfile.TemporaryDirectory(prefix="unibert-bench-") as name:
        write_simulated_corpus(Path(name), num_languages=num_languages, num_shards=num_shards, tokens=run_tokens)
        for progress in RESUME_POINTS:
            begun = time.perf_counter()
            stream = Stream(name, StreamConfig(lanes=RANKS), seed=0, timeline=steps, rank=RANKS // 2, world_size=RANKS)
            # A stream computes its fingerprint when it checks a saved state.
            _ = stream.fingerprint
            built = time.perf_counter()
            stream.epochs(progress)
            seconds[str(progress)] = time.perf_counter() - begun
            planning = time.perf_counter() - built
    step_seconds = planning / (RESUME_POINTS[-1] * len(steps))
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
    """Run half a pass through the real corpus, then build the stream again and resume it from its state.

    Returns:
        "seconds" until the batches of the next step, with all lanes' windows read again; "step".
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
