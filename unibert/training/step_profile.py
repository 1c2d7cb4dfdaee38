"""Traces of a few steps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SHOWN_OPERATIONS = 40


class StepProfile:
    """Traces steps of rank 0 with torch's profiler into ``run_dir/profile``.

    ``steps-FIRST-LAST.json.gz`` opens in https://ui.perfetto.dev, ``steps-FIRST-LAST.txt`` lists the operations that
    take most time, and on a GPU ``steps-FIRST-LAST.pickle`` is a snapshot of its memory for
    https://pytorch.org/memory_viz.

    Args:
        steps: first and last step, from 1; None profiles nothing.
        run_dir: run folder.
        device: device of the rank.
    """

    def __init__(self, steps: tuple[int, int] | None, run_dir: Path, device: torch.device) -> None:
        self._steps, self._folder, self._on_gpu = steps, run_dir / "profile", device.type == "cuda"
        self._profiler: Any = None

    def before(self, step: int) -> None:
        """Begin with the first step."""
        if self._steps is None or step != self._steps[0]:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history()
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.start()

    def after(self, step: int) -> None:
        """Write the files after the last step."""
        if self._profiler is None or self._steps is None or step < self._steps[1]:
            return
        if self._on_gpu:
            torch.cuda.synchronize()
        self._profiler.stop()
        self._folder.mkdir(exist_ok=True)
        name = self._folder / f"steps-{self._steps[0]}-{self._steps[1]}"
        self._profiler.export_chrome_trace(f"{name}.json.gz")
        order = "self_cuda_time_total" if self._on_gpu else "self_cpu_time_total"
        table = self._profiler.key_averages().table(sort_by=order, row_limit=SHOWN_OPERATIONS)
        Path(f"{name}.txt").write_text(table + "\n", encoding="utf-8")
        if self._on_gpu:
            torch.cuda.memory._dump_snapshot(f"{name}.pickle")
            torch.cuda.memory._record_memory_history(enabled=None)
        self._profiler = None
