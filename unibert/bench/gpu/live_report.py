"""A pytest plugin, ``-p unibert.bench.gpu.live_report``, that reports failures at once and counts in between.

pytest itself reports the reasons of failures only at the end, which a run that the clock stops never reaches.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from unibert.bench.gpu.checks import COUNTS_PREFIX

SECONDS_BETWEEN_COUNTS = 5.0
MAX_REASON = 300


class LiveReport:
    """Receives the reports of all workers, in the process that collects them."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()
        self.last_counts = time.monotonic()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.counts["failed"] += 1
            maxfail = self.config.getoption("maxfail")
            if maxfail and self.counts["failed"] > maxfail:
                return  # from tests that workers had started before they received the stop signal
            phase = "" if report.when == "call" else f" in {report.when}"
            self._write_line(f"FAILED {report.nodeid}{phase}: {_reason(report)}")
        elif report.skipped or report.when == "call":
            self.counts["skipped" if report.skipped else "passed"] += 1
        if self.counts and time.monotonic() - self.last_counts > SECONDS_BETWEEN_COUNTS:
            self.last_counts = time.monotonic()
            counts = ", ".join(f"{number} {outcome}" for outcome, number in self.counts.items())
            self._write_line(COUNTS_PREFIX + counts)

    def _write_line(self, line: str) -> None:
        reporter: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        # The line break ends pytest's line of dots.
        reporter.write(f"\n{line}\n")
        reporter.flush()


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin, except in workers, whose reports arrive in the collecting process."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(LiveReport(config))


def _reason(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(report.longrepr) if crash is None else f"{crash.message} ({crash.path}:{crash.lineno})"
    return " ".join(text.split())[:MAX_REASON]
