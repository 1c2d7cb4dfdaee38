"""Ranks that are forked from one process, and what starts of a run with other world sizes restore."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from tests.training.processes import placement
from unibert.configuration import parse
from unibert.files import file_sha256
from unibert.launcher import free_port
from unibert.training.checkpoint.folder import describe, sealed
from unibert.training.config import RunConfig
from unibert.training.loop import Pretraining, pretrain
from unibert.training.ranks.collectives import gather_objects, join
from unibert.training.run_history import RunHistory

LOSS_SCALE = 512.0


def train_and_restore(words: list[str], output: Path) -> None:
    """Train on two ranks and restore the last checkpoint on 2, 1 and 4, each into ``output/WORLD_SIZE.pt``."""
    config = parse(RunConfig, words)
    on_ranks(2, pretrain, config)
    for file in Path(config.run_dir).glob("checkpoints/*/state/*_optim_states.pt"):
        set_loss_scale(file)
    for world_size in (2, 1, 4):
        on_ranks(world_size, save_restored, config, output / f"{world_size}.pt")


def on_ranks(world_size: int, work: Callable[..., object], *arguments: object) -> None:
    """``work(*arguments)`` on new ranks, each of which finds itself as under a launcher."""
    port = free_port()
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_rank, args=(rank, world_size, port, work, arguments)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit(1)


def _rank(rank: int, world_size: int, port: int, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.environ |= placement(rank, world_size, port)
    work(*arguments)


def set_loss_scale(file: Path) -> None:
    """Give a checkpoint a loss scale as fp16 has it, which not every CPU can train in."""
    content = torch.load(file, weights_only=False)
    content["optimizer_state_dict"]["loss_scaler"].cur_scale = LOSS_SCALE
    torch.save(content, file)
    checkpoint = file.parents[1]
    description = describe(checkpoint)
    del description["sha256"]
    description["files"][str(file.relative_to(checkpoint))] = file_sha256(file)
    (checkpoint / "checkpoint.json").write_text(sealed(description))


def save_restored(config: RunConfig, file: Path) -> None:
    """All that the start of a run gets from its checkpoint, put together from the ranks."""
    run = Pretraining(config, join(), RunHistory())
    checkpoint = run.checkpoints.load_newest(run.engine)
    assert checkpoint is not None
    engine, optimizer = run.engine, run.engine.basic_optimizer
    tensors = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            tensors[f"{name} weight"] = parameter.data.clone()
    if engine.zero_optimization_stage() == 0:
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            tensors[f"{index} fp32"] = parameter.data
            tensors |= {f"{index} {key}": optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq")}
    else:
        if engine.zero_optimization_stage() < 3:
            # DeepSpeed's accessors see the optimizer's state only from the first step on, unless told.
            engine.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in engine.module.named_parameters():
            tensors[f"{name} fp32"] = safe_get_full_fp32_param(parameter)
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{name} {key}"] = safe_get_full_optimizer_state(parameter, key)
    counts = {float(state["step"]) for state in optimizer.state.values()}
    restored = {
        "tensors": tensors,
        "optimizer steps": set().union(*gather_objects(counts)),
        # The learning rate is set before each step, from the group's peak.
        "groups": [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups],
        "loss scale": getattr(getattr(engine.optimizer, "loss_scaler", None), "loss_scale", None),
        "engine": (engine.global_steps, engine.global_samples, engine.skipped_steps),
        "state": checkpoint["state"],
    }
    if engine.global_rank == 0:
        torch.save(restored, file)
    torch.distributed.barrier()
