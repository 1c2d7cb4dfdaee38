"""A pytest plugin, ``-p unibert.bench.gpu.failures_at_once``: names failures as they come, and counts in between.

pytest says why a test failed when all are done, which a run that is stopped by the clock never is.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from unibert.bench.gpu.checks import SO_FAR

SECONDS_BETWEEN_COUNTS = 5.0
MAX_REASON = 300


class FailuresAtOnce:
    """Hears the reports of all workers in the process that gathers them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()
        self.said = time.monotonic()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.counts["failed"] += 1
            most = self.config.getoption("maxfail")
            if most and self.counts["failed"] > most:
                return  # of tests that workers had before they heard that they should stop
            phase = "" if report.when == "call" else f" in {report.when}"
            self._say(f"FAILED {report.nodeid}{phase}: {_reason(report)}")
        elif report.skipped or report.when == "call":
            self.counts["skipped" if report.skipped else "passed"] += 1
        if self.counts and time.monotonic() - self.said > SECONDS_BETWEEN_COUNTS:
            self.said = time.monotonic()
            self._say(SO_FAR + ", ".join(f"{number} {outcome}" for outcome, number in self.counts.items()))

    def _say(self, line: str) -> None:
        reporter: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        # A line of its own, wherever the dots have come to.
        reporter.write(f"\n{line}\n")
        reporter.flush()


def pytest_configure(config: pytest.Config) -> None:
    """Take part unless this is one of the workers, whose reports are heard where they are gathered."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailuresAtOnce(config))


def _reason(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(report.longrepr) if crash is None else f"{crash.message} ({crash.path}:{crash.lineno})"
    return " ".join(text.split())[:MAX_REASON]
