"""The parts of ``unibert bench gpu`` that ask whether the kernels are right."""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from unibert.bench.gpu.small_cases import DONE
from unibert.bench.gpu.timed_command import Ended
from unibert.bench.gpu.turn import Outcome, Turn

KERNEL_TESTS = Path("tests/kernels")
NOT_NUMERICS = ("test_compile.py", "test_gate.py", "test_memory.py", "test_training_curves.py", "test_tune.py")
WORKERS = 8
"""Processes that share the GPU: tests spend their time compiling kernels, on the CPU."""
MAX_FAILURES = 5
SO_FAR = "so far: "
"""Begins the plugin's counts. pytest may be missing, so the plugin takes the word from here."""
CUDA = Path("/usr/local")
"""Holds cuda, cuda-13.0 and the like."""


def numerics(turn: Turn) -> Outcome:
    """Every kernel path against float64."""
    chosen = ["-k", "bitwise or bf16"] if turn.rehearsal else []
    with turn.warming("headline"):
        return _run_tests(turn, KERNEL_TESTS, *(f"--ignore={KERNEL_TESTS / name}" for name in NOT_NUMERICS), *chosen)


def compiled(turn: Turn) -> Outcome:
    """The losses inside torch.compile."""
    chosen = ["-k", "picked or cannot_serve"] if turn.rehearsal else []
    return _run_tests(turn, KERNEL_TESTS / "test_compile.py", *chosen)


def sanitizer(turn: Turn) -> Outcome:
    """compute-sanitizer's memcheck over one small case of every path; a rehearsal goes without the tool."""
    script = ["-m", "unibert.bench.gpu.small_cases", "--device", turn.device]
    if turn.rehearsal:
        ended = turn.python(*script)
        paths = ended.text.count(DONE)
        return Outcome.of(ended.code == 0, f"{paths} paths ran without the sanitizer, which wants a GPU")
    tool = find_sanitizer()
    if tool is None:
        return Outcome("not run", "no compute-sanitizer on the PATH or under /usr/local/cuda")
    with turn.warming("widths"):
        return judge_sanitizer(_run_sanitizer(turn, tool, script))


def _run_sanitizer(turn: Turn, tool: str, script: list[str]) -> Ended:
    # Errors that torch asks for and handles are no news; memory that torch's cache keeps would hide ours.
    return turn.run(
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
        shown=lambda line: line.startswith((DONE, "========= Invalid", "========= ERROR SUMMARY")),
    )


def judge_sanitizer(ended: Ended) -> Outcome:
    """From memcheck's output; without its summary it has not seen all."""
    paths = f"{ended.text.count(DONE)} paths"
    found = re.search(r"ERROR SUMMARY: (\d+) error", ended.text)
    if found is None:
        return Outcome("FAILED", f"no summary after {paths}: {ended.last_line}")
    errors = int(found[1])
    ok = errors == 0 and ended.code == 0
    # The tool's own lines come last; the script's say why it ended.
    own = [line for line in ended.text.splitlines() if line.strip() and not line.startswith("=========")]
    complaint = "" if ok else f"; {own[-1] if own else ended.last_line}"
    return Outcome.of(ok, f"{errors} errors in {paths} (goal 0){complaint}")


def find_sanitizer() -> str | None:
    """compute-sanitizer's path."""
    folders = [os.environ.get("PATH", ""), *(str(folder / "bin") for folder in sorted(CUDA.glob("cuda*")))]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def _run_tests(turn: Turn, tests: Path, *options: str) -> Outcome:
    if find_spec("pytest") is None or not tests.exists():
        return Outcome("FAILED", "not run: pytest or the tests are missing; run from the repository's root")
    parallel = ["-n", str(min(WORKERS, os.cpu_count() or 1))] if find_spec("xdist") else []
    ended = turn.python(
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
        "unibert.bench.gpu.failures_at_once",
        shown=lambda line: line.startswith(("FAILED", "ERROR", SO_FAR)),
    )
    figure = ended.last_line.strip("= ")
    if ended.code is None:
        counts = [line for line in ended.text.splitlines() if line.startswith(SO_FAR)]
        figure = f"{figure}; {counts[-1] if counts else 'no test had ended'}"
    return Outcome.of(ended.code == 0, figure if parallel else f"{figure} (one process: no pytest-xdist)")
