"""Configuration of the demo."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class DemoConfig:
    """Options of the demo."""

    output: str = "demo-run"
    """Folder for the corpus, both runs and the report. A stopped demo continues in the same folder."""

    ranks: int = 2
    """Number of processes that the deepspeed launcher starts. With GPUs, at most one per GPU."""
