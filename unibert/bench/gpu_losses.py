"""The parts of ``unibert bench gpu`` that time the losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unibert.bench.goals import format_verdict, verdict
from unibert.bench.gpu_turn import Outcome, Turn
from unibert.bench.kernels import TIME_IS_UP

SECONDS_TO_START = 8.0
"""A process's, until its clock runs; and to end."""
PROFILER_CHATTER = ("USDT:", "STAGE:", "WARNING:")
"""What Kineto prints besides."""


def headline(turn: Turn) -> Outcome:
    """The MLM head, distillation and the adversary beside their peers at the shapes that the goals are for."""
    return _bench_kernels(turn, "headline", [])


def profile(turn: Turn) -> Outcome:
    """Where our paths spend that time."""
    output = turn.folder / "profile.json"
    output.unlink(missing_ok=True)
    preset = "rehearsal" if turn.rehearsal else "headline"
    ended = turn.python(
        "-m", "unibert.bench.kernel_profile", output, "--preset", preset, "--device", turn.device,
        "--seconds", turn.seconds - SECONDS_TO_START, shown=lambda line: not line.startswith(PROFILER_CHATTER),
    )  # fmt: skip
    profiles = _read(output).get("profiles", [])
    failed = [f"{record['path']}: {record['failed']}" for record in profiles if "failed" in record]
    ran = [record for record in profiles if "failed" not in record]
    heads = [record for record in ran if record["loss"] == "mlm"]
    figure = f"{len(ran)} paths profiled"
    if heads:
        best = min(heads, key=lambda record: record["milliseconds"])
        figure += (
            f"; {best['path']} {best['milliseconds']:.2f} ms, {best['tflops']:.3g} TFLOP/s, "
            f"{best['share_of_peak']:.0%} of peak, {best['busy']:.0%} busy"
        )
    complaint = [] if ended.code == 0 else [ended.last_line]
    return Outcome.of(bool(ran) and not failed and not complaint, figure, "\n".join([*failed, *complaint]))


def _bench_kernels(turn: Turn, name: str, options: list[str]) -> Outcome:
    """``unibert bench kernels`` with the preset ``name``, whose rows are written as they come."""
    folder = turn.folder / name
    results_file = folder / "results.json"
    results_file.unlink(missing_ok=True)
    if turn.rehearsal:
        options = ["--preset", "rehearsal", "--device", "cpu", "--repeats", "1", "--memory", "false", *options]
    else:
        options = ["--preset", name, *options]
    ended = turn.python(
        "-m", "unibert", "bench", "kernels", *options, "--minutes", max(1.0, turn.seconds - SECONDS_TO_START) / 60,
        "--grace_seconds", "0", "--tables", "false", "--output", folder,
    )  # fmt: skip
    results = _read(results_file)
    if not results.get("rows"):
        return Outcome("FAILED", f"no row was measured: {ended.last_line}")
    return judge_rows(results, [] if ended.code == 0 else [ended.last_line])


def judge_rows(results: dict[str, Any], complaints: list[str]) -> Outcome:
    """All goals that the rows decide; FAILED if one of our paths failed, is wrong or was not reached in time."""
    rows = results["rows"]
    ran = [row for row in rows if row["status"] == "ran"]
    for row in rows:
        if row["side"] != "ours":
            continue
        where = f"{row['contestant']} ({row['loss']}, H={row['hidden']})"
        if row["status"] == "ran" and not row["accurate"]:
            complaints.append(f"{where}: inaccurate")
        elif row["status"] in ("failed", "out of memory") or row.get("why") == TIME_IS_UP:
            complaints.append(f"{where}: {row['status']}: {row['why']}")
    goals = verdict(results)
    figure = f"{len(ran)} rows measured"
    if goals:
        met = sum(goal.met for goal in goals)
        figure = f"{met} of {len(goals)} goals met; {goals[0].name}: {goals[0].figure}"
    details = [format_verdict(goals), *_adversary_lines(ran), *complaints]
    return Outcome.of(bool(ran) and not complaints, figure, "\n".join(details))


def _adversary_lines(ran: list[dict[str, Any]]) -> list[str]:
    """No goal was set for the adversary; who reads the goals wants its ratio too."""
    best = {
        side: min(
            (row for row in ran if row["loss"] == "adversary" and row["side"] == side and row["accurate"]),
            key=lambda row: row["both_ms"], default=None,
        )
        for side in ("ours", "peer")
    }  # fmt: skip
    ours, peer = best["ours"], best["peer"]
    if ours is None or peer is None:
        return []
    return [
        f"adversary: {peer['both_ms'] / ours['both_ms']:.2f} times the best peer ({ours['contestant']} "
        f"{ours['both_ms']:.3f} ms, {peer['contestant']} {peer['both_ms']:.3f} ms)"
    ]


def _read(path: Path) -> dict[str, Any]:
    """The content of a results file; empty where there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
