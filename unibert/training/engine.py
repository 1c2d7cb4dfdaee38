"""The DeepSpeed engine: its configuration, from a ds_config file and the run file, its parameter groups, its steps."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unibert.errors import UserError
from unibert.installation import data_folder
from unibert.model.architectures import hidden_matrices
from unibert.model.unibert import UniBERT
from unibert.training.config import OptimizerConfig, RunConfig
from unibert.training.muon import MuonWithAdamW, Shard

DS_CONFIGS = data_folder("ds_configs")

_OWNED_BY_THE_RUN_FILE = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size and training.micro_batch_size",
    "gradient_clipping": "optimizer.max_grad_norm",
    "optimizer": "optimizer",
    "scheduler": "optimizer",
    "tensorboard": "training.monitors",
    "csv_monitor": "training.monitors",
    "wandb": "training.monitors",
}
_ALLOWED = (
    "zero_optimization",
    "bf16",
    "fp16",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "sparse_gradients",
    "comms_logger",
    "aio",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
)


def ds_config_path(name: str) -> Path:
    """The JSON file that ``training.ds_config`` means."""
    for path in (Path(name), DS_CONFIGS / f"{name}.json"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in DS_CONFIGS.glob("*.json")))
    raise UserError(f"training.ds_config: {name} is neither a file nor one of {known}")


def read_ds_config(path: Path, device: torch.device) -> dict[str, Any]:
    """Read and check a ds_config file, and resolve ``"auto"`` precision: enabled on a GPU; fp32 on a CPU.

    Raises:
        UserError: for a file that is not JSON, an unknown key, a key that belongs in the run file, or a precision that
            ``device`` or the ZeRO stage does not support.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid JSON: {error}") from error
    for key in config:
        if key in _OWNED_BY_THE_RUN_FILE:
            raise UserError(
                f"{path}: sets {key!r}, which the run file sets as {_OWNED_BY_THE_RUN_FILE[key]}; remove it here"
            )
        if key not in _ALLOWED:
            nearest = difflib.get_close_matches(key, _ALLOWED, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"allowed are {', '.join(_ALLOWED)}"
            raise UserError(f"{path}: unknown key {key!r}; {hint}")
    for precision in ("bf16", "fp16"):
        if config.get(precision, {}).get("enabled") == "auto":
            config[precision]["enabled"] = device.type == "cuda"
    _check_precision(path, config, device)
    return config


def _check_precision(path: Path, config: dict[str, Any], device: torch.device) -> None:
    enabled = [precision for precision in ("bf16", "fp16") if config.get(precision, {}).get("enabled")]
    if not enabled:
        return
    if len(enabled) > 1:
        raise UserError(f"{path}: sets both bf16 and fp16; remove one of them")
    if enabled == ["fp16"] and zero_stage(config) == 0:
        # DeepSpeed 0.19 divides the gradients by the loss scale there without having multiplied the loss by it.
        raise UserError(f"{path}: DeepSpeed does not scale the loss of fp16 under ZeRO 0; choose stage 1, 2 or 3")
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.device_name() != device.type:
        return
    supported = {"bf16": accelerator.is_bf16_supported, "fp16": accelerator.is_fp16_supported}
    if not supported[enabled[0]]():
        raise UserError(
            f"{path}: {enabled[0]} is enabled, but this {device.type} does not support it; choose another precision"
        )


def zero_stage(ds_config: dict[str, Any]) -> int:
    """ZeRO stage of a ds_config."""
    return int(ds_config.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(ds_config: dict[str, Any]) -> bool:
    """Whether a ds_config keeps AdamW's state and the fp32 weights in CPU memory."""
    device = ds_config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
    return str(device) != "none"


def training_dtype(ds_config: dict[str, Any]) -> torch.dtype:
    """Dtype of the model's weights under a ds_config from `read_ds_config`."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return next((dtype for key, dtype in dtypes.items() if ds_config.get(key, {}).get("enabled")), torch.float32)


def deepspeed_config(
    ds_config: dict[str, Any], run: RunConfig, *, micro_batch_size: int, world_size: int, load_universal: bool
) -> dict[str, Any]:
    """Complete ``ds_config`` with settings of the run file, such as batch sizes, and with the checkpoints' form."""
    first = run.training.timeline()[0]
    config = {
        **ds_config,
        "train_batch_size": first.num_sequences,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": first.num_sequences // (world_size * micro_batch_size),
        # `unibert.training.weight_update` clips.
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
        "checkpoint": {"load_universal": load_universal},
        # With offload, DeepSpeed would insist on its own AdamW, which it compiles at the first start.
        "zero_force_ds_cpu_optimizer": False,
    }
    if run.optimizer.name != "adamw":
        config["zero_allow_untested_optimizer"] = True
    if ds_config.get("bf16", {}).get("enabled"):
        # The check would wait for the device.
        config["bf16"] = {**ds_config["bf16"], "check_grad_overflow": False}
    return config


DISCRIMINATOR_GRADIENT_SCALE = 2.0**-16
"""Factor on the discriminator's gradient. DeepSpeed clips all gradients by their common norm; so scaled, those of the
discriminator do not change it. AdamW divides the factor out again, since its epsilon is scaled alike. A power of two
rounds nothing."""


def parameter_groups(model: UniBERT, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Group the parameters: matrices with weight decay, norms and biases without, for encoder and discriminator apart,
    and the matrices of the encoder's layers apart if Muon updates them or they have a learning rate of their own.

    Every group has its peak learning rate under ``peak``. The discriminator's gradients must be scaled by
    ``DISCRIMINATOR_GRADIENT_SCALE``.
    """
    discriminator = model.discriminator_parameters()
    adversary_rate = model.adversary.learning_rate if model.adversary else config.learning_rate
    has_muon, layers_rate = config.name == "muon", config.layers_learning_rate or config.learning_rate
    inside = hidden_matrices(model.masked_lm) if config.has_layers_apart else set()
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter in names:
        kind = parameter in discriminator, parameter in inside, parameter.ndim >= 2
        groups.setdefault(kind, []).append(parameter)
    return [
        {
            "params": parameters,
            # Under ZeRO 0, a checkpoint's optimizer knows its parameters by their numbers only.
            "names": [names[parameter] for parameter in parameters],
            "weight_decay": config.weight_decay if decayed else 0.0,
            "peak": adversary_rate if adversarial else layers_rate if in_layers else config.learning_rate,
            "eps": config.eps * (DISCRIMINATOR_GRADIENT_SCALE if adversarial else 1.0),
            "muon": has_muon and in_layers,
        }
        for (adversarial, in_layers, decayed), parameters in groups.items()
    ]


def num_moments(model: UniBERT, config: RunConfig) -> int:
    """Return the number of elements of the optimizer's moments: two for a weight, and one where Muon updates it; one
    more where a moving average of the weights is kept."""
    of_muon = hidden_matrices(model.masked_lm) if config.optimizer.name == "muon" else set()
    averages = int(config.training.ema_half_life is not None)
    return sum((averages + (1 if weight in of_muon else 2)) * weight.numel() for weight in model.parameters())


def build_optimizer(model: UniBERT, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer of all parameters of a model, which `WeightUpdate` makes clip."""
    groups = parameter_groups(model, config)
    if config.name == "muon":
        return MuonWithAdamW(groups, momentum=config.momentum, learning_rate=config.learning_rate, betas=config.betas)
    # Fused, it makes one pass over the state of each tensor.
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _shards_of_muon(engine: Any) -> dict[Tensor, Shard]:
    """Return what each flat parameter that Muon updates holds, under ZeRO 1 to 3."""
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        return {}
    if stage == 3:
        kinds = [zero.sub_group_to_group_id[number] for number in range(len(zero.fp16_groups))]
        flat = zip(kinds, zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
    else:
        matrices = zero.round_robin_bit16_groups
        flat = zip(range(len(matrices)), zero.single_partition_of_fp32_groups, matrices, strict=True)
    return {
        shard: Shard(
            shapes=[getattr(matrix, "ds_shape", matrix.shape) for matrix in matrices],
            each=stage == 3,
            device=torch.device(engine.device),
        )
        for kind, shard, matrices in flat
        if engine.basic_optimizer.param_groups[kind]["muon"]
    }


def build_engine(
    model: UniBERT,
    run: RunConfig,
    ds_config: dict[str, Any],
    *,
    micro_batch_size: int,
    world_size: int,
    load_universal: bool,
) -> Any:
    """Build the DeepSpeed engine of ``model`` with its optimizer. `Checkpoints.prepare_newest` gives
    ``load_universal``."""
    import deepspeed

    for parameter in model.discriminator_parameters():
        parameter.register_hook(lambda gradient: gradient * DISCRIMINATOR_GRADIENT_SCALE)
    optimizer = build_optimizer(model, run.optimizer)
    config = deepspeed_config(
        ds_config, run, micro_batch_size=micro_batch_size, world_size=world_size, load_universal=load_universal
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    if zero_stage(ds_config) == 0 and training_dtype(ds_config) != torch.float32:
        # DeepSpeed creates AdamW's state by a step on zero gradients, which would count in the bias correction.
        optimizer.state.clear()
    if isinstance(optimizer, MuonWithAdamW):
        optimizer.use_shards(_shards_of_muon(engine))
    if zero_stage(ds_config) == 3:
        for parameter in model.parameters_used_outside_their_module():
            deepspeed.zero.register_external_parameter(model, parameter)
    if world_size == 1 and not measures_gradient(engine):
        # To sum the gradients over one rank, plain data parallelism would copy all of them twice.
        engine.enable_backward_allreduce = False
    return engine


def measures_gradient(engine: Any) -> bool:
    """Whether DeepSpeed measures the norm of the gradient: with ZeRO, or in half precision."""
    return hasattr(engine.optimizer, "_global_grad_norm")


def group_settings(engine: Any) -> list[dict[str, Any]]:
    """Return the settings of every parameter group, which a checkpoint that is loaded replaces by its own."""
    names = ("peak", "betas", "eps", "weight_decay", "fused", "muon")
    return [{name: group[name] for name in names} for group in engine.optimizer.param_groups]


def restore_group_settings(engine: Any, settings: list[dict[str, Any]]) -> None:
    """Give the parameter groups the settings from `group_settings` again, and undo what else a checkpoint sets."""
    for group, own in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(own)
    if hasattr(engine.optimizer, "clip_grad"):
        engine.optimizer.clip_grad = 0.0  # as in `deepspeed_config`; version 0.1.0 let DeepSpeed clip
    for parameter, state in engine.basic_optimizer.state.items():
        if "step" not in state:
            continue
        # DeepSpeed restores it on the CPU, but the fused update counts beside the parameter.
        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)


def set_learning_rate(engine: Any, factor: float) -> None:
    """Set the learning rate of every parameter group to ``factor`` times its peak."""
    for group in engine.optimizer.param_groups:
        group["lr"] = factor * group["peak"]


def set_batch(engine: Any, *, micro_batch_size: int, accumulation: int, world_size: int) -> None:
    """Set micro-batch size and gradient accumulation, if a schedule has changed them."""
    if (
        engine.train_micro_batch_size_per_gpu() != micro_batch_size
        or engine.gradient_accumulation_steps() != accumulation
    ):
        engine.set_train_micro_batch_size(micro_batch_size)
        engine.set_train_batch_size(micro_batch_size * accumulation * world_size)
