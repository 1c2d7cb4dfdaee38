"""Time of each kernel of UniBERT's losses: ``python -m unibert.bench.losses.kernel_profile OUTPUT --preset NAME``.

Every UniBERT path runs at the cases of a preset of ``unibert bench kernels``, forward and backward under torch's
profiler. The JSON file is written after every path::

    format, environment, matmul_tflops    as in results.json of ``bench kernels``
    profiles   one object for each case and path: the case's fields, then
      path            name of the provider; ``failed``: reason why there are no figures
      milliseconds    time per step for both passes, from the first kernel's start to the last one's end
      busy            share of that time in which a kernel ran
      tflops, share_of_peak    the case's minimum flops over milliseconds; not for the adversary
      kernels         ``name``, ``calls`` per step, ``microseconds`` per step, ``share`` of the kernels' time, and on
                      CUDA ``registers`` and ``shared_bytes``; longest first

On a CPU torch's operators take the place of kernels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from unibert.bench.losses.case import Case
from unibert.bench.losses.config import KernelBenchConfig
from unibert.bench.losses.inputs import Inputs, make_inputs
from unibert.bench.losses.providers import providers_of
from unibert.bench.losses.worker import matmul_peak
from unibert.environment import describe_environment
from unibert.files import write_json

WARMUP_STEPS = 3
STEPS = {"cuda": 10, "cpu": 2}
CATEGORIES = {"cuda": ("kernel", "gpu_memcpy", "gpu_memset"), "cpu": ("cpu_op",)}
"""Categories of the trace's events that count as kernels."""
SHOWN_KERNELS, SHOWN_CHARACTERS = 8, 72

Record = dict[str, Any]


def profile_kernels(preset: str, device: str, output: Path, seconds: float) -> None:
    """Profile the preset's cases, printing a table for each path, until the seconds are over."""
    end = time.monotonic() + seconds
    result: Record = {
        "format": 1,
        "environment": describe_environment(),
        "matmul_tflops": matmul_peak(device),
        "profiles": [],
    }
    config = KernelBenchConfig(preset=preset, device=device)  # type: ignore[arg-type]
    for case in config.cases():
        inputs: Inputs | None = None
        for provider in providers_of(case.loss):
            # Cases without a bias run the same kernels without one vector, and are left out.
            if provider.side != "ours" or (case.loss != "adversary" and not case.bias) or time.monotonic() > end:
                continue
            inputs = make_inputs(case, device) if inputs is None else inputs
            record = case.to_json() | {"path": provider.name}
            try:
                (function,) = provider.candidates(inputs).values()
                record |= _profiled(function, inputs, case, result["matmul_tflops"])
            except Exception as error:  # any error is recorded as the path's result
                record["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            result["profiles"].append(record)
            write_json(output, result)
            print(format_profile(record), flush=True)


def format_profile(record: Record) -> str:
    """The figures of a path and its longest kernels."""
    case = Case(**{key: record[key] for key in Case.__dataclass_fields__})
    title = f"{record['path']}, {case}"
    if "failed" in record:
        return f"{title}: failed: {record['failed']}"
    speed = f", {record['tflops']:.3g} TFLOP/s, {record['share_of_peak']:.0%} of peak" if "tflops" in record else ""
    lines = [f"{title}: {record['milliseconds']:.3f} ms, {record['busy']:.0%} busy{speed}"]
    lines += [
        f"  {kernel['microseconds']:10.1f} us {kernel['share']:5.1%} {kernel['calls']:6.1f} x  "
        f"{kernel['name'][:SHOWN_CHARACTERS]}"
        for kernel in record["kernels"][:SHOWN_KERNELS]
    ]
    return "\n".join(lines)


def _profiled(function: Callable[[], Any], inputs: Inputs, case: Case, peak: float) -> Record:
    device = inputs.hidden.device.type
    steps = STEPS[device]

    def step() -> None:
        for leaf in inputs.leaves.values():
            leaf.grad = None
        function().backward()

    for _ in range(WARMUP_STEPS if device == "cuda" else 1):
        step()
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory(prefix="unibert-profile-") as folder:
        # The trace holds the kernels' registers, which the profiler's own tables leave out.
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    record = summarize_trace(events, steps, CATEGORIES[device])
    if case.floor_flops:
        record["tflops"] = case.floor_flops / record["milliseconds"] / 1e9
        record["share_of_peak"] = record["tflops"] / peak
    return record


def summarize_trace(events: list[Record], steps: int, categories: tuple[str, ...]) -> Record:
    """Sum the time of each kernel in a Chrome trace of ``steps`` steps.

    Raises:
        ValueError: if the trace has no event of the categories.
    """
    calls = [event for event in events if event.get("ph") == "X" and event.get("cat") in categories]
    if not calls:
        raise ValueError(f"the profiler's trace has no {', '.join(categories)}")
    calls.sort(key=lambda event: event["ts"])
    kernels: dict[str, Record] = {}
    busy = 0.0
    latest_end = calls[0]["ts"]
    for event in calls:
        start, end = event["ts"], event["ts"] + event["dur"]
        busy += max(0.0, end - max(start, latest_end))
        latest_end = max(latest_end, end)
        kernel = kernels.setdefault(event["name"], {"name": event["name"], "calls": 0.0, "microseconds": 0.0})
        kernel["calls"] += 1 / steps
        kernel["microseconds"] += event["dur"] / steps
        for key, name in (("registers per thread", "registers"), ("shared memory", "shared_bytes")):
            if key in event.get("args", {}):
                kernel[name] = event["args"][key]
    total = sum(kernel["microseconds"] for kernel in kernels.values())
    span = latest_end - calls[0]["ts"]
    for kernel in kernels.values():
        kernel["share"] = kernel["microseconds"] / total if total else 0.0
    return {
        "milliseconds": span / steps / 1000,
        "busy": busy / span if span else 0.0,
        "kernels": sorted(kernels.values(), key=lambda kernel: -kernel["microseconds"]),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m unibert.bench.losses.kernel_profile")
    parser.add_argument("output", type=Path)
    parser.add_argument("--preset", default="headline")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    profile_kernels(options.preset, options.device, options.output, options.seconds)


if __name__ == "__main__":
    main()
