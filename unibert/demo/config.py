"""The demo's options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class DemoConfig:
    """Where the demo writes, and on how many ranks it trains."""

    output: str = "demo-run"
    """Folder for the corpus, both runs and the report. What is complete there is kept, so a stopped demo continues."""

    ranks: int = 2
    """Processes started by the deepspeed launcher."""
