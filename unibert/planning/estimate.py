"""What a run will need and how long it will take, estimated from its configuration before you ask for a GPU.

Nothing here starts ranks or touches a GPU. Memory is arithmetic over what DeepSpeed 0.19 and the losses hold; speed is
what was measured elsewhere (`unibert.planning.accelerators`) at this run's FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from unibert_kernels.chunked import WORKSPACE
from unibert_kernels.paths import MIN_STORED_ROWS, WORKSPACE_SHARE

from unibert.errors import UserError
from unibert.model.cost import EncoderShape, flops_by_part, parameters_by_part
from unibert.model.encoder import build_masked_lm, check_architecture
from unibert.model.unibert import UniBERT
from unibert.planning.accelerators import Accelerator, Speeds
from unibert.schedules import Schedule, Step, value_at
from unibert.training.checkpoint.retention import checkpoint_bytes, rank_checkpoint_bytes
from unibert.training.config import RunConfig
from unibert.training.engine import ds_config_path, offloads_optimizer, read_ds_config, training_dtype, zero_stage

GIB = 2**30
USABLE_SHARE = 0.9
"""Of a device's memory; the rest is left to fragmentation, to libraries' workspaces and to error in these figures."""
PROCESS_GIB = 0.75
"""Held besides what is estimated here. On a CPU, measured of the demo's teacher: Python and its packages, the stream,
what the allocator keeps. On a GPU, assumed: the CUDA context and NCCL's buffers."""
RECOMPUTE_GIB = 0.5
"""Most that the recompute path of the MLM head holds, which is a goal of its benchmark."""
ENOUGH_TOKENS = 32_768
"""Tokens in a micro-batch from which a larger one is taken to make a GPU no faster, while it needs more memory; for as
many, a higher ZeRO stage is worth its communication."""
CANDIDATES = ("zero1", "zero2", "zero3", "zero1_offload", "zero3_offload")
"""ds_configs to recommend, the first that will do. ZeRO 1 holds less than ZeRO 0 for one more gathering a step."""
MAX_LIVE_PARAMETERS = 1e9
"""DeepSpeed's default for ``stage3_max_live_parameters`` and ``stage3_max_reuse_distance``."""


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes of one rank that do not depend on the micro-batch."""

    weights: float
    gradients: float
    optimizer: float
    """fp32 weights, AdamW's moments, and the fp32 gradients of the update, on the device."""
    buffers: float
    """DeepSpeed's, for communication."""
    host: float
    """Offloaded to the memory of the machine."""

    @property
    def device(self) -> float:
        """Together, on the device."""
        return self.weights + self.gradients + self.optimizer + self.buffers


def state_bytes(
    ds_config: Mapping[str, Any], *, parameters: int, largest: int, itemsize: int, world_size: int, on_cpu: bool
) -> StateBytes:
    """What a rank holds of weights, gradients and AdamW's state.

    DeepSpeed's estimators (`Planned.deepspeed_estimate`) know neither stage 0 nor 1, nor fp32, nor buffers, nor that
    stage 3 keeps what it will need again within a thousand million parameters, which is all of a compact model.

    Args:
        ds_config: as `read_ds_config` gave it.
        parameters: trained elements.
        largest: elements of the largest parameter.
        itemsize: bytes of a weight in the model: 2 or 4.
        world_size: ranks.
        on_cpu: the ranks have no GPU, where memory that is asked for and not written to costs nothing.
    """
    zero = ds_config.get("zero_optimization", {})
    stage, shard = zero_stage(dict(ds_config)), parameters / world_size
    if stage == 0:
        # fp32 needs no copy of the weights in fp32.
        whole, adam = float(itemsize * parameters), (8.0 if itemsize == 4 else 16.0) * parameters
        return StateBytes(weights=whole, gradients=whole, optimizer=adam, buffers=0.0, host=0.0)
    weights: float = itemsize * (min(parameters, MAX_LIVE_PARAMETERS) + shard if stage == 3 else parameters)
    gradients: float = itemsize * (parameters if stage == 1 else shard)
    optimizer, host = 16 * shard, 0.0
    bucket = zero.get("reduce_bucket_size", 5e8)
    buffers = itemsize * (min(bucket, parameters) if on_cpu else bucket)
    if stage < 3 and zero.get("overlap_comm", False):
        buffers *= 2
    if offloads_optimizer(dict(ds_config)):
        # Whole gradients wait in the machine's memory for the end of the accumulation.
        optimizer, host = 0.0, 16 * shard + itemsize * (parameters if stage == 1 else shard)
        buffers += 2 * itemsize * largest
    if _offloads_weights(ds_config):
        weights -= itemsize * shard
        host += itemsize * shard
    if on_cpu:
        optimizer, host = optimizer + host, 0.0
    return StateBytes(weights=weights, gradients=gradients, optimizer=optimizer, buffers=buffers, host=host)


def _offloads_weights(ds_config: Mapping[str, Any]) -> bool:
    return ds_config.get("zero_optimization", {}).get("offload_param", {}).get("device", "none") != "none"


@dataclass(frozen=True, kw_only=True)
class MemoryBytes:
    """Bytes of one rank with a micro-batch."""

    states: StateBytes
    activations: float
    head: float
    """Masked rows, the vocabulary's gradient and the loss's workspace."""
    teacher: float
    """Its weights and what its forward pass holds."""
    process: float
    host: float
    """In the memory of the machine: what is offloaded, and the copy from which rank 0 writes a checkpoint."""

    @property
    def device(self) -> float:
        """Together, on the device."""
        return self.states.device + self.activations + self.head + self.teacher + self.process


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A ds_config with a micro-batch, and whether the device can hold them."""

    ds_config: str
    micro_batch_size: int
    memory: MemoryBytes
    fits: bool


class Planned:
    """The model of a run, on no device, and what follows from it.

    Args:
        config: the run.
        accelerator: what each rank has.
        nodes, gpus: machines, and ranks on each.
        vocab_size: of the tokenizer.
        num_languages: the discriminator's classes.
        speeds: measured elsewhere.
        network_gbit: between nodes, Gbit/s and rank.

    Raises:
        UserError: for a world size that the run cannot have, a model or teacher that cannot be built, a ds_config that
            cannot be read.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        *,
        nodes: int,
        gpus: int,
        vocab_size: int,
        num_languages: int,
        speeds: Speeds,
        network_gbit: float,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.nodes, self.gpus = nodes, gpus
        self.world_size = nodes * gpus
        self.vocab_size = vocab_size
        self.num_languages = num_languages
        self.speeds = speeds
        self.network_gbit = network_gbit
        self.timeline = config.training.timeline()
        self.phases = self.timeline.phases()
        config.stream.raise_if_world_size_does_not_fit(self.world_size)
        self.longest = max(phase.sequence_length for phase in self.phases)
        self._teacher = _teacher_on_meta(config) if config.distillation else None
        self.model = _model_on_meta(config, vocab_size, self.longest, num_languages, self._teacher)
        self.student = EncoderShape.from_model(self.model.masked_lm)
        self.teacher = EncoderShape.from_model(self._teacher) if self._teacher is not None else None

    # ---- the model ---------------------------------------------------------------------------------------------

    @cached_property
    def parameters_by_part(self) -> dict[str, int]:
        """Trained elements."""
        return parameters_by_part(self.model)

    @property
    def parameters(self) -> int:
        """Trained elements in all."""
        return sum(self.parameters_by_part.values())

    @cached_property
    def largest_parameter(self) -> int:
        """Elements."""
        return max(parameter.numel() for parameter in self.model.parameters())

    @property
    def teacher_parameters(self) -> int:
        """Elements of the teacher, tied ones once."""
        return sum(p.numel() for p in self._teacher.parameters()) if self._teacher is not None else 0

    @property
    def masks(self) -> bool:
        """Whether attention goes by masks: not where varlen can serve."""
        asked = self.config.model.attention
        return asked == "sdpa" or self.accelerator.device_type == "cpu" or self.student.attention_dropout

    @cached_property
    def masked(self) -> float:
        """Mean share of the tokens that is masked, over the run."""
        return float(np.mean(_values(self.config.stream.masking_rate)))

    @cached_property
    def max_masked(self) -> float:
        """Largest share of the tokens that is masked."""
        schedule = self.config.stream.masking_rate
        return max(value for _, value in schedule) if isinstance(schedule, list) else schedule

    @cached_property
    def flops_by_part(self) -> dict[str, float]:
        """FLOPs per token, mean over the run, documents as long as their rows."""
        distillation = self.config.distillation
        taught = float(np.mean(_values(distillation.weight) > 0)) if distillation else 0.0
        # Every path of the distillation's head but the chunked one computes the student's logits twice.
        recompute = 1.0 if self.head_path == "recompute" else 0.0
        if distillation and distillation.logits and self.head_path == "exp-store":
            recompute = taught
        total: dict[str, float] = {}
        for phase, tokens in self._tokens_by_phase():
            parts = flops_by_part(
                self.student,
                length=phase.sequence_length,
                masked=self.masked,
                masks=self.masks,
                recompute=recompute,
                adversary=self.config.adversary,
                num_languages=self.num_languages,
                documents_per_token=1 / phase.sequence_length,
                distillation=distillation,
                teacher=self.teacher,
                distilled=taught,
            )
            for part, flops in parts.items():
                total[part] = total.get(part, 0.0) + flops * tokens / self.timeline.total_tokens
        return total

    @property
    def flops_per_token(self) -> float:
        """Of all parts."""
        return sum(self.flops_by_part.values())

    def _tokens_by_phase(self) -> Iterator[tuple[Step, int]]:
        bounds = [phase.tokens_before for phase in self.phases] + [self.timeline.total_tokens]
        for phase, end in zip(self.phases, bounds[1:], strict=True):
            yield phase, end - phase.tokens_before

    # ---- memory ------------------------------------------------------------------------------------------------

    @property
    def workspace(self) -> float:
        """Bytes that a storing path of the losses may use: `unibert_kernels.paths.default_workspace` of this device."""
        asked = self.config.mlm.max_workspace
        return asked if asked is not None else self.accelerator.memory_gib * GIB / WORKSPACE_SHARE

    @property
    def head_path(self) -> str:
        """The MLM head's path, as `unibert_kernels.paths.choose_head_path` would choose it."""
        if self.accelerator.device_type == "cpu":
            return "chunked"
        if self.config.mlm.path != "auto":
            return self.config.mlm.path
        precision = training_dtype(self.read_ds_config(self.config.training.ds_config))
        enough = self.workspace >= MIN_STORED_ROWS * self.vocab_size * precision.itemsize
        return "exp-store" if enough and precision != torch.float16 else "recompute"

    def read_ds_config(self, name: str) -> dict[str, Any]:
        """The ds_config that ``name`` means, on this accelerator."""
        return read_ds_config(ds_config_path(name), torch.device(self.accelerator.device_type))

    def states(self, ds_config: Mapping[str, Any]) -> StateBytes:
        """Weights, gradients, optimizer and buffers of one rank."""
        return state_bytes(
            ds_config,
            parameters=self.parameters,
            largest=self.largest_parameter,
            itemsize=training_dtype(dict(ds_config)).itemsize,
            world_size=self.world_size,
            on_cpu=self.accelerator.device_type == "cpu",
        )

    def deepspeed_estimate(self, name: str) -> float | None:
        """GiB a GPU of weights, gradients and optimizer by DeepSpeed's own estimator, None where it has none."""
        ds_config = self.read_ds_config(name)
        stage, offload = zero_stage(ds_config), offloads_optimizer(ds_config)
        if stage < 2 or training_dtype(ds_config) == torch.float32:
            return None
        from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

        sizes = {"num_gpus_per_node": self.gpus, "num_nodes": self.nodes, "cpu_offload": offload}
        if stage == 2:
            _, needed = estimate_zero2_model_states_mem_needs(self.parameters, **sizes)
            return needed / GIB
        _, needed, _ = estimate_zero3_model_states_mem_needs(
            self.parameters, self.largest_parameter, **sizes, cpu_offload_params=_offloads_weights(ds_config)
        )
        return needed / GIB

    def memory(self, ds_config: Mapping[str, Any], micro_batch_size: int) -> MemoryBytes:
        """Of one rank, at the longest rows and the most masked tokens."""
        itemsize = training_dtype(dict(ds_config)).itemsize
        tokens = micro_batch_size * self.longest
        rows = self.max_masked * tokens
        student, hidden = self.student, self.student.hidden_size
        kept = student.saved_activations(self.longest, masks=self.masks) + student.backward_activations()
        # The vocabulary's gradient comes in fp32, then in the weights' precision, beside that of the embedding.
        vocabulary = (4 + 2 * itemsize) * student.vocab_size * hidden
        teacher = 0.0
        if self.teacher is not None:
            held = self.teacher.backward_activations() + self.teacher.hidden_size
            teacher = itemsize * (self.teacher_parameters + tokens * held) + self._relations(micro_batch_size)
        states, on_cpu = self.states(ds_config), self.accelerator.device_type == "cpu"
        copy = rank_checkpoint_bytes(
            zero_stage(dict(ds_config)), self.parameters, itemsize, rank=0, world_size=self.world_size
        )
        return MemoryBytes(
            states=states,
            activations=itemsize * tokens * kept,
            head=rows * hidden * (5 * itemsize + 4) + vocabulary + self._head_workspace(rows, itemsize),
            teacher=teacher,
            process=PROCESS_GIB * GIB + (copy if on_cpu else 0.0),
            host=0.0 if on_cpu else states.host + copy,
        )

    def _head_workspace(self, rows: float, itemsize: int) -> float:
        logits = rows * self.vocab_size
        path = self.head_path
        if path == "exp-store":
            return min(self.workspace, logits * itemsize)
        return min(4 * logits, RECOMPUTE_GIB * GIB if path == "recompute" else 4.0 * WORKSPACE)

    def _relations(self, micro_batch_size: int) -> float:
        """Scores, log-probabilities and their differences of three relations, S x S of every head in fp32."""
        config = self.config.distillation
        if config is None or not config.relations:
            return 0.0
        heads = config.relation_heads or self.student.num_heads
        return 3 * 3 * 4.0 * micro_batch_size * heads * self.longest**2

    @property
    def usable(self) -> float:
        """Bytes of a device that a plan may fill."""
        return USABLE_SHARE * self.accelerator.memory_gib * GIB

    def best_micro_batch(self, name: str) -> Choice:
        """Under a ds_config, the smallest micro-batch of `ENOUGH_TOKENS` that divides a rank's rows in every phase.

        Where there is none, or it does not fit, the largest that fits; one sequence if not even that does.
        """
        ds_config = self.read_ds_config(name)
        rows = math.gcd(*self._rank_rows())
        best = None
        for size in (size for size in range(1, rows + 1) if rows % size == 0):
            choice = self._choice(name, ds_config, size)
            if best is not None and not choice.fits:
                break
            best = choice
            if size * self.longest >= ENOUGH_TOKENS:
                break
        assert best is not None
        return best

    def _choice(self, name: str, ds_config: Mapping[str, Any], micro_batch_size: int) -> Choice:
        memory = self.memory(ds_config, micro_batch_size)
        fits = memory.device <= self.usable
        return Choice(ds_config=name, micro_batch_size=micro_batch_size, memory=memory, fits=fits)

    def _rank_rows(self) -> list[int]:
        """A rank's sequences of a step, by phase."""
        return [phase.num_sequences // self.world_size for phase in self.phases]

    @cached_property
    def as_configured(self) -> Choice:
        """The run file's own ds_config and micro-batch, no larger than a rank's rows."""
        name = self.config.training.ds_config
        size = min(self.config.training.micro_batch_size, max(self._rank_rows()))
        return self._choice(name, self.read_ds_config(name), size)

    @cached_property
    def recommended(self) -> Choice:
        """The first of `CANDIDATES` that no other gives a larger micro-batch.

        Raises:
            UserError: if not even one sequence fits.
        """
        choices = [self.best_micro_batch(name) for name in CANDIDATES]
        fitting = [choice for choice in choices if choice.fits]
        if not fitting:
            least = min(choices, key=lambda choice: choice.memory.device)
            raise UserError(
                f"the run does not fit: with a micro-batch of one sequence of {self.longest} tokens, "
                f"{least.ds_config} still needs {least.memory.device / GIB:.1f} GiB, while {self.usable / GIB:.1f} GiB "
                f"of a {self.accelerator.name}'s {self.accelerator.memory_gib:.1f} GiB may be filled; take a larger "
                "GPU, a shorter training.sequence_length or a smaller model"
            )
        most = max(choice.micro_batch_size for choice in fitting)
        return next(choice for choice in fitting if choice.micro_batch_size == most)

    # ---- time --------------------------------------------------------------------------------------------------

    @property
    def efficiency(self) -> float:
        """Share of the device's peak to expect of a rank by itself."""
        return self.speeds.efficiency(self.flops_per_token)

    @property
    def rank_speed(self) -> float:
        """Tokens per second of one rank before gradients are exchanged."""
        return self.efficiency * 1e12 * self.accelerator.peak_tflops / self.flops_per_token

    @property
    def exchange_seconds(self) -> float:
        """Of a step, to reduce all gradients and gather all weights around a ring, none of it hidden.

        A ring moves (W - 1) / W of the parameters three times: twice for an all-reduce, as ZeRO 1 does it, once to
        gather. The slower of link and network bounds it.
        """
        if self.world_size == 1:
            return 0.0
        bounds = [] if self.accelerator.link_gbs is None else [1e9 * self.accelerator.link_gbs]
        if self.nodes > 1:
            bounds.append(1e9 * self.network_gbit / 8)
        if not bounds:
            return 0.0
        itemsize = training_dtype(self.read_ds_config(self.config.training.ds_config)).itemsize
        return 3 * itemsize * self.parameters * (1 - 1 / self.world_size) / min(bounds)

    def seconds(self, factor: float = 1.0) -> float:
        """Of training, evaluation and checkpoints left out, at ``factor`` times the expected speed of a rank."""
        computing = self.timeline.total_tokens / (self.world_size * self.rank_speed * factor)
        return computing + len(self.timeline) * self.exchange_seconds

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks, gradients exchanged."""
        return self.timeline.total_tokens / self.seconds()

    # ---- on disk -----------------------------------------------------------------------------------------------

    @property
    def kept_checkpoints(self) -> int:
        """Those that are there when the run ends."""
        training = self.config.training
        by_tokens = self.timeline.total_tokens // training.keep_every_tokens if training.keep_every_tokens else 0
        return training.keep_checkpoints + by_tokens + training.keep_best

    def checkpoint(self, name: str) -> int:
        """Bytes of one checkpoint under a ds_config."""
        ds_config = self.read_ds_config(name)
        return checkpoint_bytes(zero_stage(ds_config), self.parameters, training_dtype(ds_config).itemsize)

    @property
    def exported(self) -> int:
        """Bytes of the exported model, in fp32, without its tokenizer."""
        return 4 * sum(p.numel() for p in self.model.masked_lm.parameters())


def _model_on_meta(
    config: RunConfig, vocab_size: int, length: int, num_languages: int, teacher: PreTrainedModel | None
) -> UniBERT:
    # Weights to start from are loaded and cut, which the meta device cannot do.
    with torch.device("meta" if config.model.initialize_from is None else "cpu"):
        student = build_masked_lm(config.model, vocab_size, length)
    with torch.device("meta"):
        return UniBERT(
            student,
            num_languages,
            mlm=config.mlm,
            adversary=config.adversary,
            distillation=config.distillation,
            teacher=teacher,
            attention=config.model.attention,
        )


def _teacher_on_meta(config: RunConfig) -> PreTrainedModel:
    assert config.distillation is not None
    folder = config.distillation.teacher
    if not (Path(folder) / "config.json").is_file():
        raise UserError(
            f"distillation.teacher: {folder} is no Hugging Face model folder (it has no config.json); name one that "
            "is, if only its config.json, or plan without: --distillation null"
        )
    try:
        settings = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"distillation.teacher: the config.json in {folder} cannot be read: {error}") from error
    check_architecture(settings.model_type, f"distillation.teacher ({folder})")
    with torch.device("meta"):
        return AutoModelForMaskedLM.from_config(settings)


def _values(schedule: Schedule) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of a schedule, at the middle of every thousandth of the run."""
    return np.array([value_at(schedule, (step + 0.5) / 1000) for step in range(1000)])
