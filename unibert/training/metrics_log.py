"""Where a run's metrics go: metrics.jsonl, the monitors and the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unibert.errors import UserError, short_message
from unibert.training.checkpoint.claim import Claim
from unibert.training.config import RunConfig
from unibert.training.metrics_file import MetricsFile
from unibert.training.monitors import Monitor, numbers_of, start_monitors

_SHOWN = (
    "loss",
    "mlm_loss",
    "adversary_accuracy",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "mfu",
    "heldout_mlm_loss",
    "unigram_entropy",
    "retrieval_raw",
    "retrieval_centred",
    "probe_linear",
)
"""Metrics in the lines for logs without a progress bar."""

LATE = 1.2
"""Seconds of the slowest rank's forward passes, in those of the median, from which it is named in such lines."""


class MetricsLog:
    """Writes lines of metrics on rank 0; does nothing on other ranks.

    Args:
        run_dir: run folder, whose ``metrics.jsonl`` receives every line.
        claim: claim of this start to the run folder; None on all ranks but 0.
        num_steps: number of steps of the run.
    """

    def __init__(self, run_dir: Path, claim: Claim | None, num_steps: int) -> None:
        self.path = run_dir / "metrics.jsonl"
        self._file = MetricsFile(self.path)
        self._claim, self._num_steps = claim, num_steps
        self._monitors: dict[str, Monitor] = {}
        self._bar = tqdm(disable=True)

    def start_after(self, step: int, tokens: int, config: RunConfig) -> None:
        """Remove the lines of steps after ``step``, which the run repeats; start the monitors and the progress bar.

        Args:
            step: number of steps that the run has done.
            tokens: number of tokens that it has read in them.
            config: the run, which names its monitors.

        Raises:
            UserError: if a monitor cannot be started.
        """
        if self._claim is not None:
            # A run without a checkpoint repeats what it measured before its first step too.
            self._file.keep_until(step or -1)
            self._monitors = start_monitors(config, step, tokens)
        self._bar = tqdm(
            total=self._num_steps,
            initial=step,
            desc=self.path.parent.name,
            unit="step",
            disable=self._claim is None or not os.isatty(2),
        )

    def advance(self) -> None:
        """Count one step on the progress bar."""
        self._bar.update()

    def close(self) -> None:
        """Close the progress bar and the monitors."""
        self._bar.close()
        for name in list(self._monitors):
            self._monitor(name, lambda monitor: monitor.close())

    def _monitor(self, name: str, use: Callable[[Monitor], None]) -> None:
        """Use a monitor. One that fails is left out from then on: it must not end the run."""
        try:
            use(self._monitors[name])
        except Exception as error:
            del self._monitors[name]
            print(
                f"unibert: training.monitors: {name} fails ({short_message(error)}); the run goes on without it",
                file=sys.stderr,
                flush=True,
            )

    def write(self, line: dict[str, Any]) -> None:
        """Write one line, which holds ``step`` and, unless it has no numbers, ``tokens``.

        Raises:
            UserError: if the file cannot be written or a later start has claimed the run.
        """
        if self._claim is None:
            return
        if numbers := numbers_of(line):
            for name in list(self._monitors):
                self._monitor(name, lambda monitor: monitor.write(line["step"], line["tokens"], numbers))
        if "loss" in line:
            shown = {"loss": "loss", "mlm": "mlm_loss"}
            losses = {name: f"{line[key]:.3f}" for name, key in shown.items() if key in line}
            self._bar.set_postfix(losses, refresh=False)
        numbers_shown = "  ".join(f"{key} {line[key]:.4g}" for key in _SHOWN if key in line)
        if numbers_shown and not os.isatty(2):
            late = _late_rank(line)
            print(f"step {line['step']}/{self._num_steps}  {numbers_shown}{late}", file=sys.stderr, flush=True)
        try:
            self._claim.raise_if_superseded()
            self._file.append(line)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); fix that, and the same command continues from "
                "the newest checkpoint"
            ) from error


def _late_rank(line: dict[str, Any]) -> str:
    slowest = line.get("slowest_rank")
    if slowest is None or slowest["times_median"] < LATE:
        return ""
    return f"  rank {slowest['rank']} on {slowest['host']} takes {slowest['times_median']:.2f} times the median"
