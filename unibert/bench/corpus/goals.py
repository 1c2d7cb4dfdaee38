"""The goals of building a corpus, and whether the results meet them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from unibert.bench.goals import Goal

Row = Mapping[str, Any]

MIN_SHARE = 0.9
MAX_RANK_BYTES = 1e9


def evaluate_corpus_goals(results: Mapping[str, Any]) -> Iterator[Goal]:
    """All goals that the results can decide: of cleaning, tokenising and building."""
    yield from _cleaning_goals(_ran(results, "cleaning"))
    yield from _tokenising_goals(_ran(results, "tokenising"))
    yield from _build_goals(_ran(results, "build"))


def _ran(results: Mapping[str, Any], part: str) -> list[Row]:
    return [row for row in results.get(part, {}).get("rows", []) if row["status"] == "ran"]


def _cleaning_goals(rows: list[Row]) -> Iterator[Goal]:
    ours = next((row for row in rows if row["side"] == "ours"), None)
    peers = [row for row in rows if row["side"] == "peer"]
    if ours is None or not peers:
        return
    best = max(peers, key=lambda row: row["mb_per_cpu_second"])
    yield Goal(
        "at least as fast as WikiExtractor",
        "MB of wikitext per CPU second",
        f"{ours['mb_per_cpu_second']:.2f} against {best['mb_per_cpu_second']:.2f} ({best['name']})",
        ours["mb_per_cpu_second"] >= best["mb_per_cpu_second"],
    )
    for key, name, scale in (("lost_share", "prose lost, %", 100), ("leftovers_per_10k", "markup left per 10,000", 1)):
        least = min(row["quality"][key] for row in peers)
        own = ours["quality"][key]
        yield Goal(
            "no more than WikiExtractor", name, f"{scale * own:.3f} against {scale * least:.3f}", bool(own <= least)
        )


def _tokenising_goals(rows: list[Row]) -> Iterator[Goal]:
    for ours in (row for row in rows if row["side"] == "ours"):
        peers = [row for row in rows if row["side"] == "peer" and row["tokenizer"] == ours["tokenizer"]]
        if peers:
            best = max(peers, key=lambda row: row["mb_per_cpu_second"])
            share = ours["mb_per_cpu_second"] / best["mb_per_cpu_second"]
            yield Goal(
                f"≥ {MIN_SHARE:.0%} of the tokenizer alone",
                f"{ours['tokenizer']}, MB of text per CPU second",
                f"{share:.1%} of {best['mb_per_cpu_second']:.2f} ({best['name']})",
                share >= MIN_SHARE,
            )


def _build_goals(rows: list[Row]) -> Iterator[Goal]:
    for row in rows:
        if "efficiency" in row:
            yield Goal(
                f"≥ {MIN_SHARE:.0%} efficient from 1 to {row['ranks']} ranks",
                row["name"],
                f"{row['efficiency']:.1%}",
                row["efficiency"] >= MIN_SHARE,
            )
        yield Goal(
            f"< {MAX_RANK_BYTES / 1e9:.0f} GB a rank",
            row["name"],
            f"{row['peak_bytes'] / 1e9:.2f} GB",
            row["peak_bytes"] < MAX_RANK_BYTES,
        )
