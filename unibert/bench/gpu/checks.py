"""The parts of ``unibert bench gpu`` that check the correctness of the kernels."""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from unibert.bench.gpu.part_context import Outcome, PartContext
from unibert.bench.gpu.small_cases import DONE_PREFIX
from unibert.bench.gpu.timed_command import CompletedCommand

KERNEL_TESTS = Path("tests/kernels")
OTHER_TESTS = ("test_compile.py", "test_gate.py", "test_memory.py", "test_training_curves.py", "test_tune.py")
WORKERS = 8
"""Processes that share the GPU. Tests spend most of their time compiling kernels on the CPU."""
MAX_FAILURES = 5
COUNTS_PREFIX = "so far: "
"""Prefix of the counts that `live_report` prints; defined here because the plugin needs pytest, which may be
missing."""
CUDA = Path("/usr/local")
"""Folder of cuda, cuda-13.0 and other versions."""


def numerics(context: PartContext) -> Outcome:
    """Compare every kernel path with float64."""
    selection = ["-k", "bf16"] if context.rehearsal else []
    ignored = [f"--ignore={KERNEL_TESTS / name}" for name in OTHER_TESTS]
    with context.compiling_in_background("headline"):
        return _run_tests(context, KERNEL_TESTS, *ignored, *selection)


def compiled(context: PartContext) -> Outcome:
    """Test the losses inside torch.compile."""
    selection = ["-k", "cannot_serve"] if context.rehearsal else []
    return _run_tests(context, KERNEL_TESTS / "test_compile.py", *selection)


def sanitizer(context: PartContext) -> Outcome:
    """Run compute-sanitizer's memcheck on one small case of every path; a rehearsal runs them without the tool."""
    script = ["-m", "unibert.bench.gpu.small_cases", "--device", context.device]
    if context.rehearsal:
        completed = context.python(*script)
        num_paths = completed.output.count(DONE_PREFIX)
        return Outcome.of(completed.exit_code == 0, f"{num_paths} paths ran without the sanitizer, which needs a GPU")
    tool = find_sanitizer()
    if tool is None:
        return Outcome("not run", "compute-sanitizer is neither on the PATH nor under /usr/local/cuda")
    with context.compiling_in_background("widths"):
        return judge_sanitizer(_run_sanitizer(context, tool, script))


def _run_sanitizer(context: PartContext, tool: str, script: list[str]) -> CompletedCommand:
    # Errors that torch provokes and handles are not reported; torch's memory cache would hide errors of the kernels.
    return context.run(
        [
            "env",
            "PYTORCH_NO_CUDA_MEMORY_CACHING=1",
            tool,
            "--tool",
            "memcheck",
            "--report-api-errors",
            "no",
            "--target-processes",
            "application-only",
            "--print-limit",
            "20",
            sys.executable,
            *script,
        ],
        show=lambda line: line.startswith((DONE_PREFIX, "========= Invalid", "========= ERROR SUMMARY")),
    )


def judge_sanitizer(completed: CompletedCommand) -> Outcome:
    """Outcome of memcheck from its output. Without a summary it did not check everything."""
    paths = f"{completed.output.count(DONE_PREFIX)} paths"
    summary = re.search(r"ERROR SUMMARY: (\d+) error", completed.output)
    if summary is None:
        return Outcome("FAILED", f"no summary after {paths}: {completed.last_line}")
    errors = int(summary[1])
    ok = errors == 0 and completed.exit_code == 0
    # The tool's lines come last, but the script's last line holds the reason of a failure.
    script_lines = [line for line in completed.output.splitlines() if line.strip() and not line.startswith("=========")]
    reason = "" if ok else f"; {script_lines[-1] if script_lines else completed.last_line}"
    return Outcome.of(ok, f"{errors} errors in {paths} (goal 0){reason}")


def find_sanitizer() -> str | None:
    """Path of compute-sanitizer, or None."""
    folders = [os.environ.get("PATH", ""), *(str(folder / "bin") for folder in sorted(CUDA.glob("cuda*")))]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def _run_tests(context: PartContext, tests: Path, *options: str) -> Outcome:
    if find_spec("pytest") is None or not tests.exists():
        return Outcome("FAILED", "not run: pytest or the tests are missing; run from the root of the repository")
    parallel = ["-n", str(min(WORKERS, os.cpu_count() or 1))] if find_spec("xdist") else []
    completed = context.python(
        "-m",
        "pytest",
        tests,
        *options,
        *parallel,
        f"--maxfail={MAX_FAILURES}",
        "-m",
        "not slow",
        "-rN",
        "--tb=short",
        "--durations=10",
        "-p",
        "no:cacheprovider",
        "-p",
        "unibert.bench.gpu.live_report",
        show=lambda line: line.startswith(("FAILED", "ERROR", COUNTS_PREFIX)),
    )
    figure = completed.last_line.strip("= ")
    if completed.exit_code is None:
        counts = [line for line in completed.output.splitlines() if line.startswith(COUNTS_PREFIX)]
        figure = f"{figure}; {counts[-1] if counts else 'no test had finished'}"
    return Outcome.of(completed.exit_code == 0, figure if parallel else f"{figure} (one process: no pytest-xdist)")
