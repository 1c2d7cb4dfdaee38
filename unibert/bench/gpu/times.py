"""The parts of ``unibert bench gpu`` that take times."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from unibert.bench.goals import format_verdict
from unibert.bench.gpu.attention import PRESETS, SEQUENCE_LENGTHS
from unibert.bench.gpu.turn import Outcome, Turn
from unibert.bench.losses.goals import verdict
from unibert.bench.losses.run import TIME_IS_UP
from unibert.files import write_json

SECONDS_TO_START = 8.0
"""A process's, until its clock runs; and to end."""
SECONDS_TO_TUNE = 70.0
"""To compile the candidates, draw the inputs of each kernel, and end the tile that is timed when the time is up."""
MAX_SECONDS_TO_TUNE = 130.0
"""More would leave nothing for the parts that are run if there is time."""
TIMED = re.compile(r"^(\w+) \d.* ([\d.]+) ms$", re.M)
FOUND = re.compile(r"\w+: |\d+ candidates ")
"""Lines of `unibert_kernels.fused.tune`: a tile's time, and what it chose."""
PROFILER_CHATTER = ("USDT:", "STAGE:", "WARNING:")
"""What Kineto prints besides."""


def headline(turn: Turn) -> Outcome:
    """The MLM head, distillation and the adversary beside their peers at the shapes that the goals are for."""
    return _bench_kernels(turn, "headline", [])


def widths(turn: Turn) -> Outcome:
    """The same for narrower and wider models."""
    options = ["--losses", "[mlm]", "--vocab", "[300]", "--rows", "[40]"] if turn.rehearsal else []
    return _bench_kernels(turn, "widths", options)


def tune(turn: Turn) -> Outcome:
    """Faster tiles for this GPU, written to configs.toml in the end; what was chosen by then is in the details."""
    output = turn.folder / "configs.toml"
    output.unlink(missing_ok=True)
    if turn.rehearsal:
        ended = turn.python("-m", "unibert.bench.gpu.tune_rehearsal", output)
    else:
        seconds = min(turn.seconds, MAX_SECONDS_TO_TUNE)
        ended = turn.python(
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
            shown=lambda line: FOUND.match(line) is not None,
        )
    figure = tuning_figure(ended.text)
    chosen = "" if output.is_file() else "\n".join(line for line in ended.text.splitlines() if FOUND.match(line))
    return Outcome.of(ended.code == 0, figure if ended.code == 0 else f"{ended.last_line}; {figure}", chosen)


def tuning_figure(text: str) -> str:
    """For each kernel the entry in use and the fastest found, from what tuning printed."""
    times: dict[str, list[float]] = {}
    for kernel, milliseconds in TIMED.findall(text):
        times.setdefault(kernel, []).append(float(milliseconds))
    parts = [f"{name} {found[0]:.2f} to {min(found):.2f} ms of {len(found)}" for name, found in times.items()]
    return "; ".join(parts) or "no tile was timed"


def attention(turn: Turn) -> Outcome:
    """Times of the attention paths on packed rows."""
    results: dict[str, Any] = {}
    output = turn.folder / "attention.json"
    cases = [(preset, length) for preset in PRESETS for length in SEQUENCE_LENGTHS]
    cases = cases[:1] if turn.rehearsal else cases
    for preset, length in cases:
        with tempfile.TemporaryDirectory(prefix="unibert-bench-") as temporary:
            file = Path(temporary) / "attention.json"
            small = ["--tokens", 256, "--layers", 1] if turn.rehearsal else []
            ended = turn.python(
                "-m",
                "unibert.bench.gpu.attention",
                preset,
                length,
                file,
                "--device",
                turn.device,
                *small,
                shown=_nothing,
            )
            result = _read(file) or {"failed": ended.last_line}
        results[f"{preset}, {length} tokens"] = result
        write_json(output, results)
        print(f"  {preset}, {length} tokens: {attention_times(result)}", flush=True)
    details = [f"{name}: {attention_times(result)}" for name, result in results.items()]
    ok = all("failed" not in result for result in results.values())
    # On a CPU one path of three runs.
    ok = ok and all(
        "failed" not in timed or turn.rehearsal for result in results.values() for timed in result["paths"].values()
    )
    return Outcome.of(ok, details[0], "\n".join(details[1:]))


def attention_times(result: dict[str, Any]) -> str:
    """A line on one case of the attention part, e.g. "sdpa 61.0 ms, flex 40.2 ms, varlen 35.7 ms"."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    return ", ".join(
        f"{path} failed: {timed['failed']}" if "failed" in timed else f"{path} {timed['both_ms']:.1f} ms"
        for path, timed in result["paths"].items()
    )


def profile(turn: Turn) -> Outcome:
    """Where our paths spend that time."""
    output = turn.folder / "profile.json"
    output.unlink(missing_ok=True)
    preset = "rehearsal" if turn.rehearsal else "headline"
    ended = turn.python(
        "-m",
        "unibert.bench.losses.kernel_profile",
        output,
        "--preset",
        preset,
        "--device",
        turn.device,
        "--seconds",
        turn.seconds - SECONDS_TO_START,
        shown=lambda line: not line.startswith(PROFILER_CHATTER),
    )
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
        "-m",
        "unibert",
        "bench",
        "kernels",
        *options,
        "--minutes",
        max(1.0, turn.seconds - SECONDS_TO_START) / 60,
        "--grace_seconds",
        "0",
        "--tables",
        "false",
        "--output",
        folder,
    )
    results = _read(results_file)
    if not results.get("rows"):
        return Outcome("FAILED", f"no row was measured: {ended.last_line}")
    return judge_rows(results, [] if ended.code == 0 else [ended.last_line])


def judge_rows(results: dict[str, Any], complaints: list[str]) -> Outcome:
    """All goals that the rows decide; FAILED if one of our paths failed or is wrong, or a loss has none in time."""
    rows = results["rows"]
    ran = [row for row in rows if row["status"] == "ran"]
    for row in rows:
        if row["side"] != "ours":
            continue
        where = f"{row['provider']} ({row['loss']}, H={row['hidden']})"
        if row["status"] == "ran" and not row["accurate"]:
            complaints.append(f"{where}: inaccurate")
        elif row["status"] in ("failed", "out of memory"):
            complaints.append(f"{where}: {row['status']}: {row['why']}")
    for loss in dict.fromkeys(row["loss"] for row in rows):
        if not any(row["loss"] == loss and row["side"] == "ours" for row in ran):
            complaints.append(f"{loss}: no path of ours was measured")
    late = [row for row in rows if row.get("why") == TIME_IS_UP]
    goals = verdict(results)
    figure = f"{len(ran)} rows measured"
    if goals:
        met = sum(goal.met for goal in goals)
        figure = f"{met} of {len(goals)} goals met; {goals[0].name}: {goals[0].figure}"
    if late:
        figure += f"; {len(late)} rows not reached in time"
    details = [format_verdict(goals), *_adversary_lines(ran), *complaints]
    return Outcome.of(bool(ran) and not complaints, figure, "\n".join(details))


def _adversary_lines(ran: list[dict[str, Any]]) -> list[str]:
    """No goal was set for the adversary; who reads the goals wants its ratio too."""
    best = {
        side: min(
            (row for row in ran if row["loss"] == "adversary" and row["side"] == side and row["accurate"]),
            key=lambda row: row["both_ms"],
            default=None,
        )
        for side in ("ours", "peer")
    }
    ours, peer = best["ours"], best["peer"]
    if ours is None or peer is None:
        return []
    return [
        f"adversary: {peer['both_ms'] / ours['both_ms']:.2f} times the best peer ({ours['provider']} "
        f"{ours['both_ms']:.3f} ms, {peer['provider']} {peer['both_ms']:.3f} ms)"
    ]


def _nothing(line: str) -> bool:
    return False


def _read(path: Path) -> dict[str, Any]:
    """The content of a results file; empty where there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
