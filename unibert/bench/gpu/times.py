"""The parts of ``unibert bench gpu`` that measure time."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from unibert.bench.goals import format_goals
from unibert.bench.gpu.attention import PRESETS, SEQUENCE_LENGTHS
from unibert.bench.gpu.part_context import Outcome, PartContext
from unibert.bench.losses.goals import evaluate_goals
from unibert.bench.losses.run import TIME_IS_UP
from unibert.files import write_json

SECONDS_TO_START = 8.0
"""Time that a process needs before its own clock starts, and to end."""
SECONDS_TO_TUNE = 70.0
"""Time to compile the candidates, draw the inputs of each kernel, and finish the last tile."""
MAX_SECONDS_TO_TUNE = 130.0
"""Limit that leaves time for the optional parts."""
TIMED_TILE = re.compile(r"^(\w+) \d.* ([\d.]+) ms$", re.M)
RESULT_LINE = re.compile(r"\w+: |\d+ candidates ")
"""Lines of `unibert_kernels.fused.tune`: the time of a tile, and the chosen tiles."""
PROFILER_CHATTER = ("USDT:", "STAGE:", "WARNING:")
"""Prefixes of lines that Kineto prints."""


def headline(context: PartContext) -> Outcome:
    """Compare the MLM head, distillation and the adversary with their peers at the shapes of the goals."""
    return _bench_kernels(context, "headline", [])


def widths(context: PartContext) -> Outcome:
    """Compare them for narrower and wider models."""
    options = ["--losses", "[mlm]", "--vocab", "[300]", "--rows", "[40]"] if context.rehearsal else []
    return _bench_kernels(context, "widths", options)


def tune(context: PartContext) -> Outcome:
    """Find faster tiles for this GPU and write them to configs.toml; if time runs out, the details hold the choices."""
    output = context.folder / "configs.toml"
    output.unlink(missing_ok=True)
    if context.rehearsal:
        completed = context.python("-m", "unibert.bench.gpu.tune_rehearsal", output)
    else:
        seconds = min(context.seconds, MAX_SECONDS_TO_TUNE)
        completed = context.python(
            "-m",
            "unibert_kernels.fused.tune",
            "--vocab",
            250_000,
            "--hidden",
            384,
            "--rows",
            9_830,
            "--minutes",
            max(10.0, seconds - SECONDS_TO_TUNE) / 60,
            "--output",
            output,
            seconds=seconds,
            show=lambda line: RESULT_LINE.match(line) is not None,
        )
    figure = tuning_figure(completed.output)
    choices = [line for line in completed.output.splitlines() if RESULT_LINE.match(line)]
    ok = completed.exit_code == 0
    details = "" if output.is_file() else "\n".join(choices)
    return Outcome.of(ok, figure if ok else f"{completed.last_line}; {figure}", details)


def tuning_figure(text: str) -> str:
    """The time of the entry in use and of the fastest tile for each kernel, from the output of tuning."""
    times: dict[str, list[float]] = {}
    for kernel, milliseconds in TIMED_TILE.findall(text):
        times.setdefault(kernel, []).append(float(milliseconds))
    figures = [f"{kernel} {tiles[0]:.2f} to {min(tiles):.2f} ms of {len(tiles)}" for kernel, tiles in times.items()]
    return "; ".join(figures) or "no tile was timed"


def attention(context: PartContext) -> Outcome:
    """Time the attention paths on packed sequences."""
    results: dict[str, Any] = {}
    output = context.folder / "attention.json"
    cases = [(preset, length) for preset in PRESETS for length in SEQUENCE_LENGTHS]
    cases = cases[:1] if context.rehearsal else cases
    for preset, length in cases:
        with tempfile.TemporaryDirectory(prefix="unibert-bench-") as temporary:
            file = Path(temporary) / "attention.json"
            small = ["--tokens", 256, "--layers", 1] if context.rehearsal else []
            completed = context.python(
                "-m",
                "unibert.bench.gpu.attention",
                preset,
                length,
                file,
                "--device",
                context.device,
                *small,
                show=_nothing,
            )
            result = _read(file) or {"failed": completed.last_line}
        results[f"{preset}, {length} tokens"] = result
        write_json(output, results)
        print(f"  {preset}, {length} tokens: {attention_times(result)}", flush=True)
    details = [f"{name}: {attention_times(result)}" for name, result in results.items()]
    ok = all("failed" not in result for result in results.values())
    # On a CPU only one path of three runs.
    ok = ok and all(
        "failed" not in timed or context.rehearsal for result in results.values() for timed in result["paths"].values()
    )
    return Outcome.of(ok, details[0], "\n".join(details[1:]))


def attention_times(result: dict[str, Any]) -> str:
    """One line with the times of a case, e.g. "sdpa 61.0 ms, flex 40.2 ms, varlen 35.7 ms"."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    return ", ".join(
        f"{path} failed: {timed['failed']}" if "failed" in timed else f"{path} {timed['both_ms']:.1f} ms"
        for path, timed in result["paths"].items()
    )


def profile(context: PartContext) -> Outcome:
    """Profile UniBERT's paths at the shapes of the goals."""
    output = context.folder / "profile.json"
    output.unlink(missing_ok=True)
    preset = "rehearsal" if context.rehearsal else "headline"
    completed = context.python(
        "-m",
        "unibert.bench.losses.kernel_profile",
        output,
        "--preset",
        preset,
        "--device",
        context.device,
        "--seconds",
        context.seconds - SECONDS_TO_START,
        show=lambda line: not line.startswith(PROFILER_CHATTER),
    )
    profiles = _read(output).get("profiles", [])
    failed = [f"{record['path']}: {record['failed']}" for record in profiles if "failed" in record]
    profiled = [record for record in profiles if "failed" not in record]
    heads = [record for record in profiled if record["loss"] == "mlm"]
    figure = f"{len(profiled)} paths profiled"
    if heads:
        best = min(heads, key=lambda record: record["milliseconds"])
        figure += (
            f"; {best['path']} {best['milliseconds']:.2f} ms, {best['tflops']:.3g} TFLOP/s, "
            f"{best['share_of_peak']:.0%} of peak, {best['busy']:.0%} busy"
        )
    problems = failed if completed.exit_code == 0 else [*failed, completed.last_line]
    return Outcome.of(bool(profiled) and not problems, figure, "\n".join(problems))


def _bench_kernels(context: PartContext, name: str, options: list[str]) -> Outcome:
    """Run ``unibert bench kernels`` with the preset ``name``; it writes each row as soon as it is measured."""
    folder = context.folder / name
    results_file = folder / "results.json"
    results_file.unlink(missing_ok=True)
    if context.rehearsal:
        options = ["--preset", "rehearsal", "--device", "cpu", "--repeats", "1", "--memory", "false", *options]
    else:
        options = ["--preset", name, *options]
    completed = context.python(
        "-m",
        "unibert",
        "bench",
        "kernels",
        *options,
        "--minutes",
        max(1.0, context.seconds - SECONDS_TO_START) / 60,
        "--grace_seconds",
        "0",
        "--tables",
        "false",
        "--output",
        folder,
    )
    results = _read(results_file)
    if not results.get("rows"):
        return Outcome("FAILED", f"no row was measured: {completed.last_line}")
    return judge_rows(results, [] if completed.exit_code == 0 else [completed.last_line])


def judge_rows(results: dict[str, Any], problems: list[str]) -> Outcome:
    """Outcome of measured rows: FAILED if a UniBERT path failed or is inaccurate, or none was measured for a loss."""
    problems = list(problems)
    rows = results["rows"]
    ran = [row for row in rows if row["status"] == "ran"]
    for row in rows:
        if row["side"] != "ours":
            continue
        where = f"{row['provider']} ({row['loss']}, H={row['hidden']})"
        if row["status"] == "ran" and not row["accurate"]:
            problems.append(f"{where}: inaccurate")
        elif row["status"] in ("failed", "out of memory"):
            problems.append(f"{where}: {row['status']}: {row['why']}")
    for loss in dict.fromkeys(row["loss"] for row in rows):
        if not any(row["loss"] == loss and row["side"] == "ours" for row in ran):
            problems.append(f"{loss}: no UniBERT path was measured")
    unreached = [row for row in rows if row.get("why") == TIME_IS_UP]
    goals = evaluate_goals(results)
    figure = f"{len(ran)} rows measured"
    if goals:
        met = sum(goal.met for goal in goals)
        figure = f"{met} of {len(goals)} goals met; {goals[0].name}: {goals[0].figure}"
    if unreached:
        figure += f"; {len(unreached)} rows not reached in time"
    details = [format_goals(goals), *_adversary_lines(ran), *problems]
    return Outcome.of(bool(ran) and not problems, figure, "\n".join(details))


def _adversary_lines(ran: list[dict[str, Any]]) -> list[str]:
    """The adversary's ratio to the best peer, for which there is no goal."""
    fastest = {
        side: min(
            (row for row in ran if row["loss"] == "adversary" and row["side"] == side and row["accurate"]),
            key=lambda row: row["both_ms"],
            default=None,
        )
        for side in ("ours", "peer")
    }
    unibert, peer = fastest["ours"], fastest["peer"]
    if unibert is None or peer is None:
        return []
    return [
        f"adversary: {peer['both_ms'] / unibert['both_ms']:.2f} times the best peer ({unibert['provider']} "
        f"{unibert['both_ms']:.3f} ms, {peer['provider']} {peer['both_ms']:.3f} ms)"
    ]


def _nothing(line: str) -> bool:
    return False


def _read(path: Path) -> dict[str, Any]:
    """The content of a results file, empty if it does not exist."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
