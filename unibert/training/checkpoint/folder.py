"""The folder of one complete checkpoint: its description with digests, and what can be read from it without ranks."""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from unibert.errors import UserError
from unibert.files import file_sha256, flush_to_disk

DESCRIPTION = "checkpoint.json"
TAG = "state"
"""Subfolder that holds DeepSpeed's files."""
PARTIAL = ".partial-"
"""Prefix of a folder that is not complete."""


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in ``folder``, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / DESCRIPTION).is_file())


def partial_of(complete: Path) -> Path:
    """The folder in which a checkpoint is written before it has its final name."""
    return complete.with_name(f"{PARTIAL}{complete.name}")


def publish(partial: Path, complete: Path) -> None:
    """Rename a folder whose files are all written to its final name."""
    for path in partial.rglob("*"):
        flush_to_disk(path)
    partial.rename(complete)
    flush_to_disk(complete.parent)


def step_of(checkpoint: Path) -> int:
    """Number of optimizer steps after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("step-"))


def describe(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's description: step, layout, files with digests, and the stream's state.

    Raises:
        UserError: if the description is damaged.
    """
    path = checkpoint / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if sealed({key: value for key, value in description.items() if key != "sha256"}) != json.dumps(description):
            raise ValueError
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is damaged") from error
    return description


def sealed(description: dict[str, Any]) -> str:
    """JSON text of a description that includes a digest of itself."""
    content = json.dumps(description)
    return json.dumps({**description, "sha256": hashlib.sha256(content.encode()).hexdigest()})


def first_damage(folder: Path, files: dict[str, str]) -> str | None:
    """Describe the first of ``files`` (SHA-256 by path within ``folder``) that is missing or altered, if any."""
    for name, digest in files.items():
        try:
            if file_sha256(folder / name) != digest:
                return f"{folder / name}: is damaged, its content differs from the digest"
        except OSError as error:
            return f"{folder / name}: cannot be read ({error.strerror})"
    return None


def parameter_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained module's parameters by name.

    Raises:
        UserError: if the checkpoint is damaged.
    """
    import torch

    # Under ZeRO 3 every rank has a file with the shapes of all.
    name = "zero_pp_rank_0_mp_rank_00" if describe(checkpoint)["zero_stage"] == 3 else "mp_rank_00"
    file = checkpoint / TAG / f"{name}_model_states.pt"
    try:
        content = torch.load(file, map_location="cpu", weights_only=False, mmap=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{file}: cannot be read; choose another step") from error
    groups = content.get("param_shapes") or [{name: tensor.shape for name, tensor in content["module"].items()}]
    return {name: tuple(shape) for group in groups for name, shape in group.items()}


def full_state_dict(checkpoint: Path, *, ema: bool = False) -> dict[str, Any]:
    """The trained module's fp32 weights, assembled from all ranks' files. Needs no GPU and no ranks.

    Args:
        checkpoint: folder of the checkpoint.
        ema: whether to return their moving average instead.

    Raises:
        UserError: if the checkpoint is damaged or has no average.
    """
    # Who only lists checkpoints need not wait for torch.
    import torch

    description = describe(checkpoint)
    if damage := first_damage(checkpoint, description["files"]):
        raise UserError(f"{damage}; export another with --step")
    if ema and description.get("ema_half_life") is None:
        raise UserError(f"{checkpoint}: has no average of weights; training.ema_half_life makes runs keep one")
    if description["zero_stage"] == 0:
        file = checkpoint / TAG / "mp_rank_00_model_states.pt"
        content = torch.load(file, map_location="cpu", weights_only=False)
        averages = _unsharded_averages(content) if ema else {}
        # Tied weights are one tensor under two names, of which the optimizer knows one.
        by_address = {content["module"][name].data_ptr(): average for name, average in averages.items()}
        return {name: by_address.get(own.data_ptr(), own).float() for name, own in content["module"].items()}
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # DeepSpeed prints its progress and shows a bar.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        if ema:
            return _sharded_averages(checkpoint / TAG, description["zero_stage"])
        return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG)


def _unsharded_averages(content: dict[str, Any]) -> dict[str, Any]:
    """The averages in a ZeRO 0 checkpoint by the names of parameters."""
    optimizer = content["optimizer"]
    # In bf16, DeepSpeed wraps AdamW.
    optimizer = optimizer.get("optimizer_state_dict", optimizer)
    return {
        name: optimizer["state"][number]["ema"]
        for group in optimizer["param_groups"]
        for number, name in zip(group["params"], group["names"], strict=True)
        if "ema" in optimizer["state"].get(number, {})
    }


def _sharded_averages(folder: Path, stage: int) -> dict[str, Any]:
    """The averages in a ZeRO 1, 2 or 3 checkpoint, assembled as DeepSpeed does it with the weights."""
    import torch
    from deepspeed.utils import zero_to_fp32

    masters, adam = (
        ("fp32_flat_groups", "optimizer_state_dict")
        if stage == 3
        else ("single_partition_of_fp32_groups", "base_optimizer_state")
    )
    shards = [
        torch.load(file, map_location="cpu", weights_only=False)["optimizer_state_dict"]
        for file in zero_to_fp32.get_optim_files(str(folder))
    ]
    # The weights are saved without the padding at the end of the last shard.
    averages = [
        [shard[adam]["state"][number]["ema"][: len(master)] for number, master in enumerate(shard[masters])]
        for shard in shards
    ]
    models = zero_to_fp32.parse_model_states(zero_to_fp32.get_model_state_files(str(folder)))
    if stage == 3:
        merged = zero_to_fp32._get_fp32_state_dict_from_zero3_checkpoint(len(shards), averages, models, False)
    else:
        paddings = shards[0].get("param_alignment_paddings")
        merged = zero_to_fp32._get_fp32_state_dict_from_zero2_checkpoint(len(shards), averages, models, False, paddings)
    return zero_to_fp32.to_torch_tensor(merged)
