"""The goals of the losses, and whether a results file meets them.

For the MLM head, forward and backward together: at least 1.5 times as fast as the best peer, tuned or not, up to H =
384, and 1.2 times above; 10 times as fast as the best peer at its default chunk size; exp-store at 65 % of the measured
bf16 matmul peak, counted on 6 N H V; recompute within 0.5 GB besides inputs and gradients; gradient errors not above
those of eager bf16. For distillation from a teacher twice as wide: at most 2.2 times the MLM head's time. On a CPU,
from V = 32,000: not slower than the faster of eager and tuned `F.linear_cross_entropy`.
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
CPU_MIN_VOCAB = 32_000
_CASE_KEYS = ("loss", "rows", "vocab", "hidden", "dtype", "distribution", "bias", "seed")
_CPU_BASELINES = ("eager", "F.linear_cross_entropy, tuned")


def evaluate_goals(results: Mapping[str, Any]) -> list[Goal]:
    """All goals that the rows can decide, in the order of the cases."""
    cases: dict[tuple[Any, ...], list[Row]] = {}
    for row in results["rows"]:
        if row["status"] == "ran":
            cases.setdefault(tuple(row[key] for key in _CASE_KEYS), []).append(row)
    goals: list[Goal] = []
    for key, rows in cases.items():
        if rows[0]["loss"] == "mlm":
            goals += _mlm_goals(rows) if rows[0]["dtype"] == "bfloat16" else _cpu_goals(rows)
        elif rows[0]["loss"] == "distillation":
            goals += _distillation_goals(rows, cases.get(("mlm", *key[1:]), []))
    return goals


def _mlm_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    case = _format_case(rows)
    unibert = _fastest(row for row in rows if row["side"] == "ours")
    peer = _fastest(row for row in rows if row["side"] == "peer")
    default = _fastest(row for row in rows if row["setting"] == "default")
    if unibert and peer:
        min_ratio = SPEEDUP["up to H = 384" if rows[0]["hidden"] <= 384 else "above"]
        ratio = peer["both_ms"] / unibert["both_ms"]
        times = f"{unibert['provider']} {unibert['both_ms']:.2f} ms, {label(peer)} {peer['both_ms']:.2f} ms"
        yield Goal(f"≥ {min_ratio} times the best peer", case, f"{ratio:.2f} ({times})", ratio >= min_ratio)
    if unibert and default:
        ratio = default["both_ms"] / unibert["both_ms"]
        yield Goal(
            f"≥ {SPEEDUP_OVER_DEFAULTS:.0f} times the peers at their defaults",
            case,
            f"{ratio:.1f} ({default['provider']} {default['both_ms']:.1f} ms)",
            ratio >= SPEEDUP_OVER_DEFAULTS,
        )
    for row in rows:
        if row["provider"] == "UniBERT exp-store":
            share = row["share_of_peak"]
            yield Goal(
                f"exp-store at ≥ {SHARE_OF_PEAK:.0%} of peak on 6 N H V", case, f"{share:.0%}", share >= SHARE_OF_PEAK
            )
        if row["provider"] == "UniBERT recompute" and "workspace_bytes" in row:
            gigabytes = row["workspace_bytes"] / 1e9
            yield Goal(
                f"recompute's workspace < {WORKSPACE_GB} GB", case, f"{gigabytes:.2f} GB", gigabytes < WORKSPACE_GB
            )
    eager = next((row for row in rows if row["provider"] == "eager"), None)
    if eager is not None:
        for row in rows:
            if row["side"] == "ours":
                error, eager_error = _gradient_error(row), _gradient_error(eager)
                yield Goal(
                    f"gradient error of {row['provider']} ≤ eager's",
                    case,
                    f"{error:.1e} against {eager_error:.1e}",
                    error <= eager_error,
                )


def _cpu_goals(rows: Sequence[Row]) -> Iterator[Goal]:
    unibert = _fastest(row for row in rows if row["side"] == "ours")
    baseline = _fastest(row for row in rows if row["provider"] in _CPU_BASELINES)
    if unibert and baseline and rows[0]["vocab"] >= CPU_MIN_VOCAB:
        ratio = unibert["both_ms"] / baseline["both_ms"]
        yield Goal(
            "no slower than eager and tuned F.linear_cross_entropy",
            _format_case(rows),
            f"{unibert['provider']} {unibert['both_ms']:.0f} ms, {label(baseline)} {baseline['both_ms']:.0f} ms: "
            f"{ratio:.2f} of its time",
            ratio <= 1,
        )


def _distillation_goals(rows: Sequence[Row], mlm_rows: Sequence[Row]) -> Iterator[Goal]:
    distillation = _fastest(row for row in rows if row["side"] == "ours")
    mlm = _fastest(row for row in mlm_rows if row["side"] == "ours")
    if distillation and mlm and rows[0]["dtype"] == "bfloat16":
        ratio = distillation["both_ms"] / mlm["both_ms"]
        yield Goal(
            f"distillation ≤ {DISTILLATION_RATIO} times the MLM head",
            _format_case(rows),
            f"{ratio:.2f} ({distillation['provider']} {distillation['both_ms']:.2f} ms)",
            ratio <= DISTILLATION_RATIO,
        )


def _fastest(rows: Iterator[Row]) -> Row | None:
    """The fastest accurate row; an inaccurate provider computes something else."""
    return min((row for row in rows if row["accurate"]), key=lambda row: row["both_ms"], default=None)


def _gradient_error(row: Row) -> float:
    return max(row["hidden_gradient_error"], row["weight_gradient_error"])


def _format_case(rows: Sequence[Row]) -> str:
    row = rows[0]
    bias = ", bias" if row["bias"] else ""
    return f"H={row['hidden']} V={row['vocab']} N={row['rows']}, {row['distribution']}{bias}"
