"""The goals that were set for the losses, and whether a results file meets them.

For the MLM head, forward and backward together: at least 1.5 times as fast as the best peer, however tuned, up to
H = 384 and 1.2 times above; 10 times as fast as the best peer left at its default chunk size; exp-store at 65 % of the
measured bf16 matmul peak, counted on 6 N H V; recompute within 0.5 GB besides inputs and gradients; gradients no
further from float64 than eager bf16's. For distillation from a teacher twice as wide: at most 2.2 times the MLM head's
time. On a CPU, from V = 32,000: no slower than the faster of eager and tuned `F.linear_cross_entropy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unibert.bench.goals import Goal
from unibert.bench.result_files import label

Row = Mapping[str, Any]

SPEEDUP = {"up to H = 384": 1.5, "above": 1.2}
SPEEDUP_OVER_DEFAULTS = 10.0
SHARE_OF_PEAK = 0.65
WORKSPACE_GB = 0.5
DISTILLATION_RATIO = 2.2
CPU_LEAST_VOCAB = 32_000
_WORK = ("loss", "rows", "vocab", "hidden", "dtype", "distribution", "bias", "seed")
_CPU_RIVALS = ("eager", "F.linear_cross_entropy, tuned")


def verdict(results: Mapping[str, Any]) -> list[Goal]:
    """Every goal that the rows can decide, in the order of the cases."""
    cases: dict[tuple[Any, ...], list[Row]] = {}
    for row in results["rows"]:
        if row["status"] == "ran":
            cases.setdefault(tuple(row[key] for key in _WORK), []).append(row)
    goals: list[Goal] = []
    for key, rows in cases.items():
        if rows[0]["loss"] == "mlm":
            goals += _mlm_goals(rows) if rows[0]["dtype"] == "bfloat16" else _cpu_goals(rows)
        elif rows[0]["loss"] == "distillation":
            goals += _distillation_goals(rows, cases.get(("mlm", *key[1:]), []))
    return goals


def _mlm_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    where = _where(rows)
    ours = _fastest(row for row in rows if row["side"] == "ours")
    peer = _fastest(row for row in rows if row["side"] == "peer")
    default = _fastest(row for row in rows if row["setting"] == "default")
    if ours and peer:
        wanted = SPEEDUP["up to H = 384" if rows[0]["hidden"] <= 384 else "above"]
        ratio = peer["both_ms"] / ours["both_ms"]
        figure = f"{ratio:.2f} ({ours['provider']} {ours['both_ms']:.2f} ms, {label(peer)} {peer['both_ms']:.2f} ms)"
        yield Goal(f"≥ {wanted} times the best peer", where, figure, ratio >= wanted)
    if ours and default:
        ratio = default["both_ms"] / ours["both_ms"]
        yield Goal(
            f"≥ {SPEEDUP_OVER_DEFAULTS:.0f} times the peers at their defaults",
            where,
            f"{ratio:.1f} ({default['provider']} {default['both_ms']:.1f} ms)",
            ratio >= SPEEDUP_OVER_DEFAULTS,
        )
    for row in rows:
        if row["provider"] == "UniBERT exp-store":
            share = row["share_of_peak"]
            yield Goal(
                f"exp-store at ≥ {SHARE_OF_PEAK:.0%} of peak on 6 N H V", where, f"{share:.0%}", share >= SHARE_OF_PEAK
            )
        if row["provider"] == "UniBERT recompute" and "workspace_bytes" in row:
            gigabytes = row["workspace_bytes"] / 1e9
            yield Goal(
                f"recompute's workspace < {WORKSPACE_GB} GB", where, f"{gigabytes:.2f} GB", gigabytes < WORKSPACE_GB
            )
    eager = next((row for row in rows if row["provider"] == "eager"), None)
    if eager is not None:
        for row in rows:
            if row["side"] == "ours":
                found, allowed = _worst_gradient(row), _worst_gradient(eager)
                yield Goal(
                    f"gradient error of {row['provider']} ≤ eager's",
                    where,
                    f"{found:.1e} against {allowed:.1e}",
                    found <= allowed,
                )


def _cpu_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    ours = _fastest(row for row in rows if row["side"] == "ours")
    rival = _fastest(row for row in rows if row["provider"] in _CPU_RIVALS)
    if ours and rival and rows[0]["vocab"] >= CPU_LEAST_VOCAB:
        ratio = ours["both_ms"] / rival["both_ms"]
        yield Goal(
            "no slower than eager and tuned F.linear_cross_entropy",
            _where(rows),
            f"{ours['provider']} {ours['both_ms']:.0f} ms, {label(rival)} {rival['both_ms']:.0f} ms: {ratio:.2f} "
            "of its time",
            ratio <= 1,
        )


def _distillation_goals(rows: Sequence[Row], mlm_rows: Sequence[Row]) -> Iterator[Goal]:
    ours = _fastest(row for row in rows if row["side"] == "ours")
    head = _fastest(row for row in mlm_rows if row["side"] == "ours")
    if ours and head and rows[0]["dtype"] == "bfloat16":
        ratio = ours["both_ms"] / head["both_ms"]
        yield Goal(
            f"distillation ≤ {DISTILLATION_RATIO} times the MLM head",
            _where(rows),
            f"{ratio:.2f} ({ours['provider']} {ours['both_ms']:.2f} ms)",
            ratio <= DISTILLATION_RATIO,
        )


def _fastest(rows: Iterator[Row]) -> Row | None:
    """The fastest accurate row: who computes something else has no time to show."""
    return min((row for row in rows if row["accurate"]), key=lambda row: row["both_ms"], default=None)


def _worst_gradient(row: Row) -> float:
    return max(row["hidden_gradient_error"], row["weight_gradient_error"])


def _where(rows: Sequence[Row]) -> str:
    row = rows[0]
    bias = ", bias" if row["bias"] else ""
    return f"H={row['hidden']} V={row['vocab']} N={row['rows']}, {row['distribution']}{bias}"
