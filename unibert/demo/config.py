"""The demo's options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class DemoConfig:
    """Where the demo writes, and on how many ranks it trains."""

    output: str = "demo-run"
    """Folder for the corpus, both runs and the report. A stopped demo continues in the same folder."""

    ranks: int = 2
    """Processes that the deepspeed launcher starts. With GPUs, at most one per GPU."""
