"""The parts of ``unibert bench gpu`` that run tests."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from unibert.bench.failures_at_once import SO_FAR
from unibert.bench.gpu_turn import Outcome, Turn

KERNEL_TESTS = Path("tests/kernels")
NOT_NUMERICS = ("test_compile.py", "test_gate.py", "test_memory.py", "test_training_curves.py", "test_tune.py")
WORKERS = 8
"""Processes that share the GPU: tests spend their time compiling kernels, on the CPU."""
MOST_FAILURES = 5


def numerics(turn: Turn) -> Outcome:
    """Every kernel path against float64."""
    chosen = ["-k", "bitwise or bf16"] if turn.rehearsal else []
    return _run_tests(turn, KERNEL_TESTS, *(f"--ignore={KERNEL_TESTS / name}" for name in NOT_NUMERICS), *chosen)


def _run_tests(turn: Turn, tests: Path, *options: str) -> Outcome:
    if find_spec("pytest") is None or not tests.exists():
        return Outcome("FAILED", "not run: pytest or the tests are missing; run from the repository's root")
    parallel = ["-n", str(min(WORKERS, os.cpu_count() or 1))] if find_spec("xdist") else []
    ended = turn.python(
        "-m", "pytest", tests, *options, *parallel, f"--maxfail={MOST_FAILURES}", "-m", "not slow", "-rN",
        "--tb=short", "--durations=10", "-p", "no:cacheprovider", "-p", "unibert.bench.failures_at_once",
        shown=lambda line: line.startswith(("FAILED", "ERROR", SO_FAR)),
    )  # fmt: skip
    figure = ended.last_line.strip("= ")
    if ended.code is None:
        counts = [line for line in ended.text.splitlines() if line.startswith(SO_FAR)]
        figure = f"{figure}; {counts[-1] if counts else 'no test had ended'}"
    return Outcome.of(ended.code == 0, figure if parallel else f"{figure} (one process: no pytest-xdist)")
