"""The goals of the stream, and whether its results meet them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from unibert.bench.goals import Goal
from unibert.bench.result_files import label
from unibert.bench.stream.waits import STEP_SECONDS

Row = Mapping[str, Any]

TOKENS_PER_SECOND = 8e6
SPEEDUP = 4.0
RESUME_SECONDS = 2.0
SHARE_OF_STEP = 0.01


def evaluate_stream_goals(results: Mapping[str, Any]) -> Iterator[Goal]:
    """All goals that the results can decide: tokens per second and core, speed-up, resuming, planning,
    waits."""
    rows = [row for row in results["rows"] if row["status"] == "ran"]
    corpus = results["corpus"]
    case = f"{corpus['tokens'] / 1e6:.3g} M tokens, {corpus['languages']} languages"
    unibert = next((row for row in rows if row["provider"] == "UniBERT"), None)
    if unibert is not None:
        rate = unibert["tokens_per_second"]
        yield Goal(
            f"≥ {TOKENS_PER_SECOND / 1e6:.0f} M tokens/s per core",
            case,
            f"{rate / 1e6:.1f} M",
            rate >= TOKENS_PER_SECOND,
        )
        for name, settings in (("row by row", ("usual",)), ("however it reads", ("usual", "bulk"))):
            best = _fastest(row for row in rows if row["setting"] in settings)
            if best is not None:
                ratio = rate / best["tokens_per_second"]
                yield Goal(
                    f"≥ {SPEEDUP:.0f} times the best peer, {name}",
                    case,
                    f"{ratio:.2f} ({label(best)} {best['tokens_per_second'] / 1e6:.1f} M)",
                    ratio >= SPEEDUP,
                )
    if (plan := results.get("plan")) is not None:
        simulated = f"{plan['run_tokens'] / 1e9:g} G tokens, {plan['languages']} languages, {plan['shards']:,} shards"
        slowest = max(plan["resume_seconds"].values())
        yield Goal(
            f"resume within {RESUME_SECONDS:.0f} s anywhere in the plan",
            simulated,
            ", ".join(f"{seconds:.2f} s at {float(at):.0%}" for at, seconds in plan["resume_seconds"].items()),
            slowest <= RESUME_SECONDS,
        )
        yield Goal(
            f"planning for {plan['ranks']} ranks < {SHARE_OF_STEP:.0%} of a 100 ms step",
            simulated,
            f"{plan['share_of_step']:.3%}",
            plan["share_of_step"] < SHARE_OF_STEP,
        )
    for row in results.get("waits", []):
        if row["loader_processes"]:
            yield Goal(
                f"data waits < {SHARE_OF_STEP:.0%} of a {STEP_SECONDS * 1e3:.0f} ms step",
                f"{row['windows']} windows opened, {'cold' if row['cold'] else 'warm'} cache",
                f"{row['share']:.2%}, longest {row['longest_wait'] * 1e3:.1f} ms",
                row["share"] < SHARE_OF_STEP,
            )


def _fastest(rows: Iterable[Row]) -> Row | None:
    return max(rows, key=lambda row: row["tokens_per_second"], default=None)
