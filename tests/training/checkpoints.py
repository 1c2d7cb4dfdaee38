"""Checkpoints of runs that continue."""

from pathlib import Path


def damage_later_checkpoints(run_dir: Path) -> None:
    """Leave the first checkpoint alone, as if the run had been interrupted after it."""
    for checkpoint in sorted((run_dir / "checkpoints").glob("step-*"))[1:]:
        checkpoint.rename(checkpoint.with_name(f"damaged-{checkpoint.name}"))
