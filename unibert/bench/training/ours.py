"""UniBERT: its module with AdamW alone, the same with one change, and the whole trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import torch
import torch.nn.functional as F
from deepspeed.comm.comm import comms_logger, timers
from torch import Tensor

from unibert.bench.training.provider import Place, TrainProvider
from unibert.bench.training.stopwatch import MeasuredError, Stopwatch
from unibert.bench.training.work import LANGUAGES, LEARNING_RATE, MAX_NORM, TrainWork
from unibert.configuration import parse
from unibert.cpu_products import use_fastest_products
from unibert.model.activation_checkpointing import checkpoint_layers
from unibert.model.compilation import compile_layers
from unibert.model.config import AdversaryConfig, MLMConfig
from unibert.model.tied_gradient import TiedWeight
from unibert.model.unibert import StepWeights, UniBERT
from unibert.schedules import Timeline
from unibert.stream import Batch
from unibert.stream.sequences import NOT_MASKED
from unibert.training.config import RunConfig
from unibert.training.freed_memory import keep_freed_memory
from unibert.training.loop import MadeStep, PreparedStep, Pretraining
from unibert.training.ranks.collectives import join
from unibert.training.run_history import RunHistory
from unibert.training.step_counts import StepCounts
from unibert.training.weight_update import gradient_norm

OPTIMISATIONS = (
    "fastest products",
    "fused AdamW",
    "kept memory",
    "MLM head in chunks",
    "one gradient of the tied matrix",
    "attention by document",
    "packing",
)
OPTIONS = ("compiled layers", "activation checkpointing", "selective checkpointing")


def train_module(work: TrainWork, place: Place, stopwatch: Stopwatch, *, without: str = "", option: str = "") -> None:
    """Train the module with the adversary and AdamW, without the optimisation and with the option that are named."""
    if without != "kept memory":
        keep_freed_memory(place.device)
    if without != "fastest products":
        use_fastest_products(place.device)
    model = UniBERT(
        work.model(),
        len(LANGUAGES),
        mlm=MLMConfig(),
        adversary=None if without == "adversary" else AdversaryConfig(),
        attention="sdpa" if without == "attention by document" else "auto",
    ).to(place.device)
    if without == "one gradient of the tied matrix":
        TiedWeight.dtypes = ()
    if option == "compiled layers":
        compile_layers(model.masked_lm)
    if option == "activation checkpointing":
        checkpoint_layers(model.masked_lm, 1)
    if option == "selective checkpointing":
        checkpoint_layers(model.masked_lm, "selective")
    if without == "MLM head in chunks":
        model._mlm_loss = partial(_eager_loss, model)  # type: ignore[method-assign]
    fused = without != "fused AdamW"
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=fused or None)
    batches = _padded(work, place.rank) if without == "packing" else _packed(work, place.rank)
    for _ in range(work.num_steps):
        with stopwatch.measures("data"):
            batch = next(batches)
            tokens = int((batch.document_ids >= 0).sum())
            weights = StepWeights(
                replicas=1,
                masked_tokens=max(batch.masked_positions.numel(), 1),
                tokens=tokens,
                documents=len(batch.document_languages),
                adversary_weight=len(batch.document_languages),
                reversal_lambda=torch.full((), 0.1, device=place.device),
            )
        with stopwatch.measures("forward"), place.autocast():
            loss = model(batch.to(place.device), weights).total
        with stopwatch.measures("backward"):
            loss.backward()
        with stopwatch.measures("optimizer"):
            if fused:
                optimizer.grad_scale = (gradient_norm(model) / MAX_NORM).clamp(min=1.0)  # type: ignore[attr-defined]
            else:
                torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
        stopwatch.end_step(tokens, loss)


def _packed(work: TrainWork, rank: int) -> Iterator[Batch]:
    for step in work.step_batches(rank):
        yield step.micro_batches(work.batch_size)[0]


def _padded(work: TrainWork, rank: int) -> Iterator[Batch]:
    """One document in each sequence, and padding behind it."""
    for batch in _packed(work, rank):
        ids, labels, documents = (tensor.flatten() for tensor in (batch.input_ids, batch.labels, batch.document_ids))
        shape = (work.batch_size, work.sequence_length)
        alone = {
            "input_ids": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, NOT_MASKED),
            "position_ids": torch.zeros(shape, dtype=torch.long),
            "document_ids": torch.full(shape, -1),
        }
        bounds, spans = [0], []
        for row in range(work.batch_size):
            tokens = documents == row
            length = int(tokens.sum())
            alone["input_ids"][row, :length], alone["labels"][row, :length] = ids[tokens], labels[tokens]
            alone["position_ids"][row, :length] = torch.arange(length)
            alone["document_ids"][row, :length] = row
            spans.append((row * work.sequence_length, row * work.sequence_length + length))
            bounds += [row * work.sequence_length + length, (row + 1) * work.sequence_length]
        cu_seqlens = torch.tensor(bounds, dtype=torch.int32).unique()
        yield Batch(
            **alone,
            document_languages=batch.document_languages[: work.batch_size],
            cu_seqlens=cu_seqlens,
            max_seqlen=int(cu_seqlens.diff().max()),
            masked_positions=(alone["labels"].flatten() != NOT_MASKED).nonzero()[:, 0],
            sequence_indices=batch.sequence_indices,
            document_spans=spans,
            origins=[[""]] * work.batch_size,
        )


def _eager_loss(
    model: UniBERT,
    features: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    lang_ids: Tensor,
    weights: StepWeights,
    sums: dict[str, Tensor],
) -> Tensor:
    logits = F.linear(features, head_weight, model.masked_lm.get_output_embeddings().bias)
    losses = F.cross_entropy(logits.float(), labels, reduction="sum")
    return losses / weights.masked_tokens


class _Trainer(Pretraining):
    """The trainer, which ends when the steps to measure are made, without checkpoint and export."""

    def __init__(self, config: RunConfig, stopwatch: Stopwatch, work: TrainWork) -> None:
        super().__init__(config, join(), RunHistory())
        self._work, self._stopwatch = work, stopwatch
        self._communication = _Communication() if work.ranks > 1 else None

    def _optimizer_step(self, prepared: PreparedStep, counts: StepCounts, *, logged: bool) -> MadeStep:
        made = super()._optimizer_step(prepared, counts, logged=logged)
        done = prepared.step.index + 1
        self._stopwatch.end_step(counts.tokens // self._work.ranks)
        if done == self._work.warmup:
            self.clock.since_last()
            if self._communication is not None:
                self._communication.begin()
        if done == self._work.num_steps:
            parts = self.clock.since_last()
            self._stopwatch.parts = {"optimizer": parts.pop("update"), **parts}
            if self._communication is not None:
                self._stopwatch.communication = self._communication.of_a_step(self._work.steps)
            raise MeasuredError
        return made


class _Communication:
    """What ranks send each other through DeepSpeed, by operation.

    DeepSpeed logs every message; the time that its log gives is that of all messages so far, so its timers are read.
    """

    def __init__(self) -> None:
        comms_logger.enabled, comms_logger.verbose = True, False
        comms_logger.start_profiling_comms()

    def begin(self) -> None:
        """Forget the messages so far."""
        comms_logger.reset_data()
        for timer in timers.get_timers().values():
            timer.reset()

    def of_a_step(self, steps: int) -> dict[str, dict[str, float]]:
        """Return calls, bytes and seconds of each operation in one of these steps."""
        return {
            operation: {
                "calls": sum(count for count, *_ in sizes.values()) / steps,
                "bytes": sum(size * count for size, (count, *_) in sizes.items()) / steps,
                "seconds": timers(operation).elapsed(reset=False) / 1000 / steps,
            }
            for operation, sizes in comms_logger.get_raw_data().items()
        }


def train_whole(work: TrainWork, place: Place, stopwatch: Stopwatch) -> None:
    """Train as ``unibert pretrain`` does: stream, DeepSpeed, exchange, metrics."""
    sequences = work.ranks * work.micro_batches * work.batch_size
    timeline = Timeline(1000 * sequences * work.sequence_length, sequences, work.sequence_length)
    words = {
        "run_dir": work.run_dir,
        "corpus": work.corpus,
        "training.tokens": timeline.total_tokens,
        "training.global_batch_size": sequences,
        "training.micro_batch_size": work.batch_size,
        "training.sequence_length": work.sequence_length,
        "training.ds_config": work.ds_config,
        "training.log_every": 20,
        "stream.lanes": work.ranks,
        "stream.masking_rate": work.masking_rate,
        "adversary.max_lambda": 0.1,
        "optimizer.learning_rate": LEARNING_RATE,
        **{f"model.config.{key}": value for key, value in work.model_settings.items()},
    }
    config = parse(RunConfig, [f"--{key}={value}" for key, value in words.items()])
    with suppress(MeasuredError):
        _Trainer(config, stopwatch, work).run()


OURS: tuple[TrainProvider, ...] = (
    TrainProvider("UniBERT, module and AdamW", "ours", train_module, max_ranks=1, keeps_memory=True),
    TrainProvider("UniBERT, whole trainer", "ours", train_whole, keeps_memory=True),
)
ABLATIONS: tuple[TrainProvider, ...] = tuple(
    TrainProvider(
        f"without {name}",
        "ablation",
        partial(train_module, without=name),
        max_ranks=1,
        keeps_memory=name != "kept memory",
    )
    for name in (*OPTIMISATIONS, "adversary")
) + tuple(
    TrainProvider(f"with {name}", "ablation", partial(train_module, option=name), max_ranks=1, keeps_memory=True)
    for name in OPTIONS
)
