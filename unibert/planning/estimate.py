"""Estimate what a run needs and how long it takes from its configuration, before you ask for a GPU.

Nothing here starts ranks or uses a GPU. Memory is computed from what DeepSpeed 0.19 and the losses allocate, speed from
measurements (`unibert.planning.measured_speeds`) at this run's FLOPs.
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
from transformers import AutoModelForMaskedLM, PreTrainedModel
from unibert_kernels.chunked import WORKSPACE
from unibert_kernels.paths import WORKSPACE_SHARE, best_head_path

from unibert.accelerators import Accelerator
from unibert.corpus.manifest import Manifest, Teaching
from unibert.corpus.pretrained_tokenizer import Origin
from unibert.errors import UserError
from unibert.model.architectures import check_architecture
from unibert.model.cost import EncoderShape, flops_by_part, parameters_by_part
from unibert.model.distillation import SCORES_AT_ONCE
from unibert.model.encoder import build_masked_lm, load_config
from unibert.model.teacher import Teacher
from unibert.model.unibert import UniBERT
from unibert.planning.measured_speeds import Speeds
from unibert.planning.step_time import (
    Link,
    StepTime,
    mean_step_time,
    num_modules_with_parameters,
    step_time,
    traffic_of_step,
)
from unibert.schedules import Step, ever_positive, max_value, value_at
from unibert.training.branch import branch_of_run
from unibert.training.checkpoint.retention import checkpoint_bytes, rank_checkpoint_bytes
from unibert.training.config import RunConfig
from unibert.training.engine import (
    ds_config_path,
    num_moments,
    offloads_optimizer,
    read_ds_config,
    training_dtype,
    zero_stage,
)

GIB = 2**30
_SAMPLES = 1000
"""Number of points of a run at which schedules are looked up for a mean."""

USABLE_SHARE = 0.9
"""Share of a device's memory that a plan may fill. The rest is for fragmentation, libraries' workspaces and error."""
PROCESS_GIB = 0.75
"""Memory of the process itself. On a CPU, measured with the demo's teacher: Python and its packages, the stream, what
the allocator keeps. On a GPU, assumed: the CUDA context and NCCL's buffers."""
RECOMPUTE_GIB = 0.5
"""Maximum workspace of the MLM head's recompute path, which is a goal of its benchmark."""
SATURATING_TOKENS = 32_768
"""Tokens per micro-batch above which a GPU is assumed to get no faster, while memory grows. To reach as many, a higher
ZeRO stage is worth its communication."""
CANDIDATES = ("zero1", "zero2", "zero3", "zero1_offload", "zero3_offload")
"""ds_configs to recommend, in order of preference. ZeRO 1 saves memory over ZeRO 0 for one more gather per step."""
LINK_LATENCY, NETWORK_LATENCY = 20e-6, 50e-6
"""Seconds that a collective of any size takes within a machine and between machines; assumed."""
MAX_LIVE_PARAMETERS = 1e9
"""DeepSpeed's default for ``stage3_max_live_parameters`` and ``stage3_max_reuse_distance``."""


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Bytes of one rank's weights, gradients and optimizer state, which do not depend on the micro-batch."""

    weights: float
    gradients: float
    optimizer: float
    """fp32 weights and their average, the optimizer's moments, and the fp32 gradients of the update, on the device."""
    buffers: float
    """DeepSpeed's communication buffers."""
    host: float
    """State offloaded to main memory."""

    @property
    def device(self) -> float:
        """Total on the device."""
        return self.weights + self.gradients + self.optimizer + self.buffers


def state_bytes(
    ds_config: Mapping[str, Any],
    *,
    parameters: int,
    moments: int,
    largest: int,
    itemsize: int,
    world_size: int,
    on_cpu: bool,
) -> StateBytes:
    """Estimate a rank's share of weights, gradients and the optimizer's state.

    DeepSpeed's estimators (`Plan.deepspeed_estimate`) support neither stages 0 and 1 nor fp32, and ignore buffers. They
    also ignore that stage 3 keeps parameters that it reuses within the next 1e9 elements, which is all of a compact
    model.

    Args:
        ds_config: result of `read_ds_config`.
        parameters: number of trained elements.
        moments: elements of the optimizer's moments, and of the weights' average, over all ranks.
        largest: elements of the largest parameter.
        itemsize: bytes of a weight in the model: 2 or 4.
        world_size: number of ranks.
        on_cpu: whether ranks run on the CPU, where memory that is allocated and not written costs nothing.
    """
    zero = ds_config.get("zero_optimization", {})
    stage, shard = zero_stage(dict(ds_config)), parameters / world_size
    if stage == 0:
        # fp32 weights need no fp32 copy.
        whole, optimizer = float(itemsize * parameters), 4.0 * moments + (0 if itemsize == 4 else 8) * parameters
        return StateBytes(weights=whole, gradients=whole, optimizer=optimizer, buffers=0.0, host=0.0)
    weights: float = itemsize * (min(parameters, MAX_LIVE_PARAMETERS) + shard if stage == 3 else parameters)
    gradients: float = itemsize * (parameters if stage == 1 else shard)
    updated = 8 * shard + 4 * moments / world_size
    optimizer, host = updated, 0.0
    bucket = zero.get("reduce_bucket_size", 5e8)
    buffers = itemsize * (min(bucket, parameters) if on_cpu else bucket)
    if stage < 3 and zero.get("overlap_comm", False):
        buffers *= 2
    if offloads_optimizer(dict(ds_config)):
        # Unsharded gradients stay in main memory until the accumulation ends.
        optimizer, host = 0.0, updated + itemsize * (parameters if stage == 1 else shard)
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
    """Bytes of one rank for a given micro-batch."""

    states: StateBytes
    activations: float
    head: float
    """Hidden states of the masked positions, the vocabulary's gradient and the loss's workspace."""
    teacher: float
    """The teacher's weights and its activations in a forward pass."""
    process: float
    host: float
    """Main memory: offloaded state, and the copy from which rank 0 writes a checkpoint."""

    @property
    def device(self) -> float:
        """Total on the device."""
        return self.states.device + self.activations + self.head + self.teacher + self.process


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A ds_config with a micro-batch size, the memory that they need and whether it fits the device."""

    ds_config: str
    micro_batch_size: int
    memory: MemoryBytes
    fits: bool


class Plan:
    """Estimates for a run, from its model on torch's meta device.

    Args:
        config: configuration of the run.
        accelerator: device of each rank.
        nodes, gpus: number of machines, and of ranks on each.
        vocab_size: size of the tokenizer's vocabulary.
        num_languages: number of the discriminator's classes.
        speeds: measured speeds to estimate from.
        network_gbit: network between nodes, Gbit/s per rank.

    Raises:
        UserError: if the run cannot have this world size, model or teacher cannot be built, or the ds_config cannot be
            read.
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
        branch = branch_of_run(config)
        self.first_step, self.first_token = (0, 0) if branch is None else (branch.step, branch.tokens)
        self.timeline = config.training.timeline(() if branch is None else branch.steps)
        self.phases = self.timeline.phases(self.first_step)
        config.stream.raise_if_world_size_does_not_fit(self.world_size)
        self.max_sequence_length = max(phase.sequence_length for phase in self.phases)
        self._teacher = _teacher_on_meta(config, vocab_size)
        self.model = _model_on_meta(config, vocab_size, self.max_sequence_length, num_languages, self._teacher)
        self.student = EncoderShape.from_model(self.model.masked_lm)
        self.teacher = EncoderShape.from_model(self._teacher) if self._teacher is not None else None

    # ---- the model ---------------------------------------------------------------------------------------------

    @cached_property
    def parameters_by_part(self) -> dict[str, int]:
        """Number of trained elements of each part."""
        return parameters_by_part(self.model)

    @property
    def parameters(self) -> int:
        """Number of trained elements."""
        return sum(self.parameters_by_part.values())

    @cached_property
    def num_moments(self) -> int:
        """Number of elements of the optimizer's moments, and of the weights' average."""
        return num_moments(self.model, self.config)

    @cached_property
    def largest_parameter(self) -> int:
        """Number of elements of the largest parameter."""
        return max(parameter.numel() for parameter in self.model.parameters())

    @property
    def teacher_parameters(self) -> int:
        """Number of elements of the teacher, tied ones counted once."""
        return sum(p.numel() for p in self._teacher.parameters()) if self._teacher is not None else 0

    @property
    def steps(self) -> int:
        """Number of optimizer steps, without those of a branch's parent."""
        return len(self.timeline) - self.first_step

    @property
    def tokens(self) -> int:
        """Number of tokens of these steps."""
        return self.timeline.total_tokens - self.first_token

    @cached_property
    def _progress(self) -> list[float]:
        """Progress at points at equal distances."""
        begin = self.first_token / self.timeline.total_tokens
        return [begin + (1 - begin) * (sample + 0.5) / _SAMPLES for sample in range(_SAMPLES)]

    @property
    def uses_attention_masks(self) -> bool:
        """Whether attention computes all scores of a document, also those outside a window, and masks some."""
        path = self.config.model.attention
        return path == "sdpa" or self.accelerator.device_type == "cpu" or self.student.attention_dropout

    @cached_property
    def mean_masking_rate(self) -> float:
        """Share of the tokens that is masked, mean over the run."""
        return float(np.mean([value_at(self.config.stream.masking_rate, progress) for progress in self._progress]))

    @cached_property
    def max_masking_rate(self) -> float:
        """Maximum share of the tokens that is masked."""
        schedule = self.config.stream.masking_rate
        return max_value(schedule)

    @cached_property
    def flops_by_part(self) -> dict[str, float]:
        """FLOPs per token of each part, mean over the run, with one document per sequence."""
        distillation = self.config.distillation
        weights = [distillation.weights_at(progress) for progress in self._progress] if distillation else []
        taught = float(np.mean([any(weight.values()) for weight in weights])) if weights else 0.0
        # Every path of the distillation's head except the chunked one computes the student's logits twice.
        head_path = self.configured_head_path
        recompute = 1.0 if head_path == "recompute" else 0.0
        if distillation and ever_positive(distillation.logits) and head_path == "exp-store":
            recompute = taught
        total: dict[str, float] = {}
        for phase, tokens in self._tokens_by_phase():
            parts = flops_by_part(
                self.student,
                length=phase.sequence_length,
                masked=self.mean_masking_rate,
                masks=self.uses_attention_masks,
                recompute=recompute,
                adversary=self.config.adversary,
                num_languages=self.num_languages,
                documents_per_token=1 / phase.sequence_length,
                distillation=distillation,
                teacher=self.teacher,
                distilled=taught,
                checkpointing=self.config.training.activation_checkpointing,
            )
            for part, flops in parts.items():
                total[part] = total.get(part, 0.0) + flops * tokens / self.tokens
        return total

    @property
    def flops_per_token(self) -> float:
        """FLOPs per token of all parts."""
        return sum(self.flops_by_part.values())

    def _tokens_by_phase(self) -> Iterator[tuple[Step, int]]:
        bounds = [phase.tokens_before for phase in self.phases] + [self.timeline.total_tokens]
        for phase, end in zip(self.phases, bounds[1:], strict=True):
            yield phase, end - phase.tokens_before

    # ---- memory ------------------------------------------------------------------------------------------------

    @property
    def workspace(self) -> float:
        """Maximum bytes for a storing path of the losses, by default as `unibert_kernels.paths.default_workspace`."""
        configured = self.config.mlm.max_workspace
        return configured if configured is not None else self.accelerator.memory_gib * GIB / WORKSPACE_SHARE

    def head_path(self, ds_config: Mapping[str, Any], micro_batch_size: int) -> str:
        """The MLM head's path for the largest micro-batch: the longest sequences with the most masked tokens."""
        if self.accelerator.device_type == "cpu":
            return "chunked"
        if self.config.mlm.path != "auto":
            return self.config.mlm.path
        rows = math.ceil(self.max_masking_rate * micro_batch_size * self.max_sequence_length)
        return best_head_path(
            "exp-store", rows, self.vocab_size, training_dtype(dict(ds_config)), max_workspace=self.workspace
        )

    @property
    def configured_head_path(self) -> str:
        """The MLM head's path with the run's own ds_config and micro-batch."""
        ds_config = self.read_ds_config(self.config.training.ds_config)
        return self.head_path(ds_config, self.as_configured.micro_batch_size)

    def read_ds_config(self, name: str) -> dict[str, Any]:
        """Read the ds_config of this name or path, as it is for this accelerator."""
        return read_ds_config(ds_config_path(name), torch.device(self.accelerator.device_type))

    def states(self, ds_config: Mapping[str, Any]) -> StateBytes:
        """Estimate weights, gradients, optimizer state and buffers of one rank."""
        return state_bytes(
            ds_config,
            parameters=self.parameters,
            moments=self.num_moments,
            largest=self.largest_parameter,
            itemsize=training_dtype(dict(ds_config)).itemsize,
            world_size=self.world_size,
            on_cpu=self.accelerator.device_type == "cpu",
        )

    def deepspeed_estimate(self, name: str) -> float | None:
        """Return GiB per GPU of weights, gradients and optimizer by DeepSpeed's estimator, None where it has none."""
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
        """Estimate the memory of one rank, with the longest sequences and the most masked tokens."""
        itemsize = training_dtype(dict(ds_config)).itemsize
        tokens = micro_batch_size * self.max_sequence_length
        rows = self.max_masking_rate * tokens
        head_path = self.head_path(ds_config, micro_batch_size)
        student, hidden = self.student, self.student.hidden_size
        saved = student.saved_activations(
            self.max_sequence_length,
            masks=self.uses_attention_masks,
            checkpointing=self.config.training.activation_checkpointing,
        )
        # The vocabulary's gradient exists in fp32, then in the weights' precision, beside that of the embedding.
        vocabulary = (4 + 2 * itemsize) * student.vocab_size * hidden
        teacher = 0.0
        if self.teacher is not None:
            held = self.teacher.backward_activations() + self.teacher.hidden_size
            teacher = itemsize * (self.teacher_parameters + tokens * held) + self._relation_bytes(micro_batch_size)
        states, on_cpu = self.states(ds_config), self.accelerator.device_type == "cpu"
        checkpoint_copy = rank_checkpoint_bytes(
            zero_stage(dict(ds_config)),
            self.parameters,
            itemsize,
            self.num_moments,
            rank=0,
            world_size=self.world_size,
        )
        return MemoryBytes(
            states=states,
            activations=itemsize * tokens * (saved + student.backward_activations()),
            head=rows * hidden * (5 * itemsize + 4) + vocabulary + self._head_workspace(head_path, rows, itemsize),
            teacher=teacher,
            process=PROCESS_GIB * GIB + (checkpoint_copy if on_cpu else 0.0),
            host=0.0 if on_cpu else states.host + checkpoint_copy,
        )

    def _head_workspace(self, path: str, rows: float, itemsize: int) -> float:
        logits = rows * self.vocab_size
        if path == "exp-store":
            return min(self.workspace, logits * itemsize)
        return min(4 * logits, RECOMPUTE_GIB * GIB if path == "recompute" else 4.0 * WORKSPACE)

    def _relation_bytes(self, micro_batch_size: int) -> float:
        """Bytes of the scores and their products that `relation_loss` holds at a time, and of its gradients; fp32."""
        config = self.config.distillation
        if config is None or not ever_positive(config.relations):
            return 0.0
        heads = config.relation_heads or self.student.num_heads
        scores = min(SCORES_AT_ONCE, micro_batch_size * heads * self.max_sequence_length**2)
        return 4.0 * (6 * scores + 3 * micro_batch_size * self.max_sequence_length * self.student.hidden_size)

    @property
    def usable_bytes(self) -> float:
        """Bytes of a device that a plan may fill."""
        return USABLE_SHARE * self.accelerator.memory_gib * GIB

    def best_micro_batch(self, name: str) -> Choice:
        """Choose the micro-batch size to use with a ds_config; it divides a rank's sequences of a step in every phase.

        It is the smallest with `SATURATING_TOKENS`. If there is none, or it does not fit, it is the largest that fits,
        or 1 if none does.
        """
        ds_config = self.read_ds_config(name)
        sequences = math.gcd(*self._sequences_per_rank())
        best = None
        for size in (size for size in range(1, sequences + 1) if sequences % size == 0):
            choice = self._choice(name, ds_config, size)
            if best is not None and not choice.fits:
                break
            best = choice
            if size * self.max_sequence_length >= SATURATING_TOKENS:
                break
        assert best is not None
        return best

    def _choice(self, name: str, ds_config: Mapping[str, Any], micro_batch_size: int) -> Choice:
        memory = self.memory(ds_config, micro_batch_size)
        fits = memory.device <= self.usable_bytes
        return Choice(ds_config=name, micro_batch_size=micro_batch_size, memory=memory, fits=fits)

    def _sequences_per_rank(self) -> list[int]:
        """A rank's sequences of a step, by phase."""
        return [phase.num_sequences // self.world_size for phase in self.phases]

    @cached_property
    def as_configured(self) -> Choice:
        """The run file's own ds_config and micro-batch size, capped at a rank's sequences."""
        name = self.config.training.ds_config
        size = min(self.config.training.micro_batch_size, max(self._sequences_per_rank()))
        return self._choice(name, self.read_ds_config(name), size)

    @cached_property
    def recommended(self) -> Choice:
        """The first of `CANDIDATES` with the largest micro-batch size that any of them allows.

        Raises:
            UserError: if not even one sequence fits.
        """
        choices = [self.best_micro_batch(name) for name in CANDIDATES]
        fitting = [choice for choice in choices if choice.fits]
        if not fitting:
            smallest = min(choices, key=lambda choice: choice.memory.device)
            advice = "choose a larger GPU, a shorter training.sequence_length or a smaller model"
            if self.config.training.activation_checkpointing != 1:
                advice = f"set training.activation_checkpointing to 1, or {advice}"
            raise UserError(
                f"the run does not fit: with a micro-batch of one sequence of {self.max_sequence_length} tokens, "
                f"{smallest.ds_config} still needs {smallest.memory.device / GIB:.1f} GiB, but only "
                f"{self.usable_bytes / GIB:.1f} of the {self.accelerator.memory_gib:.1f} GiB of a "
                f"{self.accelerator.name} may be used; {advice}"
            )
        max_size = max(choice.micro_batch_size for choice in fitting)
        return next(choice for choice in fitting if choice.micro_batch_size == max_size)

    # ---- time --------------------------------------------------------------------------------------------------

    @property
    def efficiency(self) -> float:
        """Expected share of the device's peak, without the exchange of gradients."""
        return self.speeds.efficiency(self.flops_per_token)

    @property
    def rank_tokens_per_second(self) -> float:
        """Tokens per second of one rank, without the exchange of gradients."""
        return self.efficiency * 1e12 * self.accelerator.peak_tflops / self.flops_per_token

    def link(self, nodes: int) -> Link | None:
        """The bound of a ring over ``nodes`` machines: a rank's network if there are several, else its link in the
        machine. None if it is not known."""
        bounds = [] if self.accelerator.link_gbs is None else [1e9 * self.accelerator.link_gbs]
        if nodes > 1:
            bounds.append(1e9 * self.network_gbit / 8)
        if not bounds:
            return None
        return Link(bytes_per_second=min(bounds), latency=NETWORK_LATENCY if nodes > 1 else LINK_LATENCY)

    def step_time(
        self, choice: Choice, *, nodes: int | None = None, gpus: int | None = None, factor: float = 1.0
    ) -> StepTime:
        """Estimate the mean step, without evaluation and checkpoints.

        Args:
            choice: ds_config and micro-batch size. The transfers of offload are not included.
            nodes, gpus: number of machines, and of ranks on each, if not those of the plan.
            factor: speed of a rank in terms of the expected one.
        """
        nodes, gpus = nodes or self.nodes, gpus or self.gpus
        ds_config, world_size, link = self.read_ds_config(choice.ds_config), nodes * gpus, self.link(nodes)
        times, steps = [], []
        for phase, tokens in self._tokens_by_phase():
            micro_batches = math.ceil(phase.num_sequences / world_size / choice.micro_batch_size)
            traffic = traffic_of_step(
                ds_config,
                sizes=[parameter.numel() for parameter in self.model.parameters()],
                modules=num_modules_with_parameters(self.model),
                itemsize=training_dtype(ds_config).itemsize,
                micro_batches=micro_batches,
            )
            times.append(
                step_time(
                    ds_config,
                    traffic,
                    computing=phase.num_tokens / (world_size * self.rank_tokens_per_second * factor),
                    micro_batches=micro_batches,
                    seconds_of=lambda part: 0.0 if link is None else part.seconds(world_size, link),
                )
            )
            steps.append(tokens / phase.num_tokens)
        return mean_step_time(times, steps)

    def machines(self) -> list[tuple[int, int]]:
        """Numbers of machines, and of ranks on each, around those of the plan: halved and doubled, as far as the run
        can be divided among the ranks."""
        sizes = [(1, self.gpus // 2**power) for power in range(3, 0, -1) if self.nodes == 1]
        sizes += [(self.nodes // 2**power, self.gpus) for power in range(3, 0, -1)]
        sizes += [(self.nodes * 2**power, self.gpus) for power in range(4)]
        return [size for size in sizes if all(size) and self.config.stream.lanes % (size[0] * size[1]) == 0]

    # ---- on disk -----------------------------------------------------------------------------------------------

    @property
    def num_kept_checkpoints(self) -> int:
        """Number of checkpoints that exist when the run ends."""
        training = self.config.training
        every = training.keep_every_tokens
        by_tokens = self.timeline.total_tokens // every - self.first_token // every if every else 0
        return training.keep_checkpoints + by_tokens + training.keep_best

    def checkpoint_bytes(self, name: str) -> int:
        """Bytes of one checkpoint with a ds_config."""
        ds_config = self.read_ds_config(name)
        itemsize = training_dtype(ds_config).itemsize
        return checkpoint_bytes(zero_stage(ds_config), self.parameters, itemsize, self.num_moments)

    @property
    def exported_bytes(self) -> int:
        """Bytes of the exported model, in fp32, without its tokenizer."""
        return 4 * sum(p.numel() for p in self.model.masked_lm.parameters())


def _model_on_meta(
    config: RunConfig, vocab_size: int, length: int, num_languages: int, teacher: PreTrainedModel | None
) -> UniBERT:
    folder = Path(config.corpus) / "tokenizer"
    tokenizer_dir = folder if folder.is_dir() else None
    # Initial weights are loaded and sliced, which the meta device cannot do.
    with torch.device("meta" if config.model.initialize_from is None else "cpu"):
        student = build_masked_lm(config.model, vocab_size, length, tokenizer_dir=tokenizer_dir)
    with torch.device("meta"):
        return UniBERT(
            student,
            num_languages,
            mlm=config.mlm,
            adversary=config.adversary,
            distillation=config.distillation,
            teacher=_teacher_or_teaching(config, teacher),
            attention=config.model.attention,
        )


def _teacher_or_teaching(config: RunConfig, teacher: PreTrainedModel | None) -> Teacher | Teaching | None:
    if teacher is not None:
        return Teacher(teacher)
    if not config.learns_from_corpus:
        return None
    return Manifest.load(config.corpus).teaching_for(config.corpus, config.training.timeline().sequence_lengths)


def _teacher_on_meta(config: RunConfig, vocab_size: int) -> PreTrainedModel | None:
    """Build the teacher that a run has in memory, if it has one."""
    teacher = None if config.distillation is None else config.distillation.teacher
    if teacher is None:
        return None
    settings = load_config(teacher, "distillation.teacher")
    check_architecture(settings.model_type, f"distillation.teacher ({teacher})", teaches=True)
    if Origin.load(Path(config.corpus) / "tokenizer") is not None:
        # A run brings such a teacher to the corpus's vocabulary.
        settings.vocab_size = vocab_size
    with torch.device("meta"):
        return AutoModelForMaskedLM.from_config(settings)
