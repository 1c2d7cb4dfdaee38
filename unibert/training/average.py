"""The mean of a run's checkpoints as a plain Hugging Face model: ``unibert average``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unibert.errors import UserError
from unibert.training.checkpoint.folder import describe, full_state_dict
from unibert.training.export import checkpoints_by_step, write_model

DEFAULT_NAME = "average"
"""Name, within the run folder, of the model folder."""


def average_run(
    run_dir: Path,
    *,
    last: int | None = None,
    steps: Sequence[int] = (),
    output: Path | None = None,
    center: bool = False,
) -> Path:
    """Write the mean of the weights of several checkpoints as :func:`unibert.training.export.export_run` writes one.

    The weights are the fp32 ones that the optimizer updates; under ZeRO 0 those of the model, which are the same unless
    it is in bf16. They are summed in float64. The mean of the last weights of a run often predicts better than any of
    them (Izmailov et al. 2018, arXiv 1803.05407).

    Args:
        run_dir: the run folder.
        last: number of newest checkpoints to average.
        steps: steps of the checkpoints to average, instead of ``last``.
        output: model folder, ``run_dir/average`` by default. An older one there is replaced.
        center: whether to write the mean vector of each language.

    Returns:
        The model folder.

    Raises:
        UserError: if checkpoints are missing or damaged, or as for an export.
    """
    checkpoints = checkpoints_by_step(run_dir)
    chosen = sorted(set(steps)) if last is None else list(checkpoints)[-last:]
    missing = [step for step in chosen if step not in checkpoints]
    if missing or (last is not None and len(chosen) < last):
        lacks = f"checkpoint of step {missing[0]}" if missing else f"{last} checkpoints"
        raise UserError(
            f"{run_dir} has no {lacks} to average; it has kept {', '.join(map(str, checkpoints))}; "
            "training.keep_checkpoints and training.keep_every_tokens decide how many a run keeps"
        )
    state = _mean([checkpoints[step] for step in chosen])
    newest = describe(checkpoints[chosen[-1]])
    return write_model(run_dir, state, newest, output or run_dir / DEFAULT_NAME, center=center, averaged_steps=chosen)


def _mean(checkpoints: Sequence[Path]) -> dict[str, Any]:
    """The mean of each tensor, in fp32. One checkpoint is in memory at a time, beside the sums."""
    sums: dict[str, torch.Tensor] = {}
    for checkpoint in checkpoints:
        for name, tensor in full_state_dict(checkpoint).items():
            sums[name] = sums[name].add_(tensor) if name in sums else tensor.double()
    return {name: (total / len(checkpoints)).float() for name, total in sums.items()}
