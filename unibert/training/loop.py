"""The training loop: ``pretrain`` takes a run from its configuration to an exported model."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel

from unibert.configuration import read_yaml, to_dict
from unibert.corpus.manifest import Manifest, damaged_shards
from unibert.errors import AgreedError, UserError
from unibert.files import write_atomically
from unibert.model.encoder import build_masked_lm, freeze, load_masked_lm
from unibert.model.unibert import StepWeights, UniBERT
from unibert.schedules import Step, learning_rate_factor, value_at
from unibert.stream import Batch, StepBatch, Stream
from unibert.stream.forecast import mixing_warning
from unibert.training.checkpoint.claim import Claim
from unibert.training.checkpoint.manager import Checkpoints, complete_checkpoints
from unibert.training.checkpoint.retention import (
    MAX_BYTES_PER_PARAMETER,
    RetentionPolicy,
    raise_if_no_room,
    rank_checkpoint_bytes,
)
from unibert.training.config import RunConfig, first_difference
from unibert.training.engine import (
    build_engine,
    ds_config_path,
    read_ds_config,
    set_batch,
    set_learning_rate,
    training_dtype,
    zero_stage,
)
from unibert.training.export import export_run
from unibert.training.heldout import heldout_totals
from unibert.training.kernel_paths import announce_kernel_paths, check_kernel_paths
from unibert.training.metrics import (
    Sums,
    Throughput,
    heldout_metrics,
    nine_digits,
    objective_metrics,
    peak_memory_gib,
    prediction_metrics,
)
from unibert.training.metrics_file import MetricsFile
from unibert.training.ranks.collectives import agree, gather_objects, join, run_on_rank_0, sum_over_ranks
from unibert.training.ranks.failures import explain
from unibert.training.ranks.placement import Placement
from unibert.training.ranks.signals import Preempted, StopRequest, leave_in_peace
from unibert.training.ranks.watchdog import collectives, watched

DIGESTS_UP_TO_BYTES = 1 << 30
"""Corpora up to this size have their shards' digests checked at every start, a matter of seconds; larger ones their
sizes only, and ``unibert corpus verify`` checks the rest."""

MAX_CLASS_WEIGHT = 10.0
"""Most that a document of a rare language counts in the discriminator's loss, an average one being 1."""


@dataclass(frozen=True)
class StepCounts:
    """Of a global batch."""

    masked_tokens: float
    tokens: float
    adversary_weight: float
    """Documents, or tokens, that the discriminator classifies, each by its class's weight."""
    stopping: bool
    """Whether a signal has asked any rank to stop."""
    written: bool
    """Whether all ranks have written the checkpoint that was begun."""
    damaged_blocks: int
    """Met while the batch was read."""
    checksum: int
    """See :meth:`unibert.stream.sequences.MaskedSequences.checksum`."""


def pretrain(config: RunConfig) -> Path:
    """Train, or continue, the run that ``config`` describes and export its model.

    Returns:
        The exported Hugging Face folder, ``run_dir/model``.

    Raises:
        UserError: for anything the user can fix.
        LostRanksError: when other ranks have ended or do not answer.
        Preempted: when a signal ended the run after a checkpoint.
    """
    timeout = timedelta(minutes=config.training.collective_timeout_minutes)
    # Collectives themselves fail a minute after the watchdog should have spoken.
    placement = join(timeout + timedelta(minutes=1))
    try:
        with watched(placement.rank, placement.world_size, timeout):
            try:
                return Pretraining(config, placement).run()
            except (RuntimeError, MemoryError) as error:
                explain(error, placement, config.training.micro_batch_size)
                raise
    finally:
        dist.destroy_process_group()


class Pretraining:
    """One run on one rank. Its attributes are the parts of the run; :meth:`run` is the loop."""

    def __init__(self, config: RunConfig, placement: Placement) -> None:
        self.config = config
        self.placement = placement
        self.is_main = placement.rank == 0
        self.run_dir = Path(config.run_dir)
        self.timeline = config.training.timeline()
        error = None
        try:
            ds_config = self._prepare()
        except UserError as mistake:
            error = mistake
        agree(error)
        self.claim: Claim | None = run_on_rank_0(self._claim_run_dir)
        if self.is_main:
            self._warn_of_poor_mixing()
            announce_kernel_paths()
        self.checkpoints = Checkpoints(
            self.run_dir / "checkpoints",
            keep=RetentionPolicy(
                last=config.training.keep_checkpoints,
                every_tokens=config.training.keep_every_tokens,
                best=config.training.keep_best,
            ),
            claim=self.claim,
            rank=placement.rank,
            world_size=placement.world_size,
            zero_stage=zero_stage(ds_config),
        )
        self.engine = build_engine(
            self.model,
            config,
            ds_config,
            micro_batch_size=self._micro_batch_size(self.timeline[0]),
            world_size=placement.world_size,
            load_universal=self.checkpoints.prepare_newest(),
        )
        self.checkpoints.reserve_memory(
            rank_checkpoint_bytes(
                zero_stage(ds_config),
                self.num_parameters,
                training_dtype(ds_config).itemsize,
                rank=placement.rank,
                world_size=placement.world_size,
            ),
            pinned=placement.device.type == "cuda",
        )
        self.metrics = MetricsFile(self.run_dir / "metrics.jsonl")
        self.skipped: Counter[str] = Counter()
        self.damage: dict[str, int] = {}
        self.stop = StopRequest()
        self.mistake: UserError | None = None
        """What this rank has met, of which the others do not know yet."""

    def run(self) -> Path:
        """Every step from the newest checkpoint to the end, then the export."""
        try:
            self._train()
        except AgreedError:
            # All ranks have come here, and the checkpoint that they were writing is from before.
            self.checkpoints.finish()
            raise
        run_on_rank_0(self._export)
        model = self.run_dir / "model"
        if self.is_main:
            next_commands = f"unibert report {self.run_dir}, unibert evaluate {model} --retrieval DIR"
            print(f"The model is in {model}. Next: {next_commands}", flush=True)
        return model

    def _train(self) -> None:
        training = self.config.training
        first_step, stream_state = self._restore()
        if first_step == len(self.timeline):
            self._say_finished()
            return
        self.progress_bar = tqdm(
            total=len(self.timeline),
            initial=first_step,
            desc=self.run_dir.name,
            unit="step",
            disable=not self.is_main or not os.isatty(2),
        )
        self.throughput = Throughput(self.timeline[first_step].tokens_before)
        for rows in self._rows(first_step, stream_state):
            step = rows.step
            done = step.index + 1
            self.skipped.update(rows.skipped)
            batches = rows.micro_batches(self._micro_batch_size(step))
            counts = self._count(rows, batches)
            if counts.damaged_blocks:
                self._raise_if_damaged_beyond_limit(step, rows.skipped)
            if counts.written:
                self.checkpoints.publish()
            weights = self._step_weights(step, batches, counts)
            sums, grad_norm = self._optimizer_step(step, batches, weights)
            last = done == len(self.timeline)
            if done % training.log_every == 0 or last:
                self._log(step, sums, grad_norm, counts.checksum)
            heldout_mlm_loss = None
            if last or (training.evaluate_every and done % training.evaluate_every == 0):
                heldout_mlm_loss = self._log_heldout(done)
            if last or counts.stopping or done % training.checkpoint_every == 0:
                self._begin_checkpoint(step, rows.state, heldout_mlm_loss)
            self.progress_bar.update()
            if counts.stopping and not last:
                self.checkpoints.finish()
                leave_in_peace()
                raise Preempted(f"{self.stop.name} received: stopped after step {done}, checkpoint saved")
        self.progress_bar.close()
        self.checkpoints.finish()

    def _say_finished(self) -> None:
        if self.is_main:
            print(
                f"unibert: {self.run_dir} is finished: it has all {len(self.timeline)} steps; to train its model "
                f"further, start a new run with --run_dir NEW --model.initialize_from {self.run_dir / 'model'}; "
                "to start anew, choose another --run_dir or remove this one",
                flush=True,
            )

    def _export(self) -> None:
        export_run(self.run_dir)

    # ---- building ----------------------------------------------------------------------------------------------

    def _prepare(self) -> dict[str, Any]:
        """All that a user's mistake can spoil, before the ranks first wait for each other; the ds_config."""
        config, placement = self.config, self.placement
        self.manifest = Manifest.load(config.corpus)
        self.stream = Stream(
            config.corpus,
            config.stream,
            seed=config.seed,
            timeline=self.timeline,
            rank=placement.rank,
            world_size=placement.world_size,
        )
        if self.is_main and self.stream.shards_folder is not None:
            self._check_shards(self.stream.shards_folder)
        ds_config = read_ds_config(ds_config_path(config.training.ds_config), placement.device)
        self._check_run_dir()
        self.model = self._build_model()
        check_kernel_paths(self.model, placement.device, training_dtype(ds_config))
        # Counted here, since ZeRO 3 leaves each rank but its share of them.
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        raise_if_no_room(self.run_dir, MAX_BYTES_PER_PARAMETER * self.num_parameters)
        return ds_config

    def _check_shards(self, folder: Path) -> None:
        """Damage beyond the limit ends the run before it starts; less is told."""
        size = sum(shard.size_bytes for shard in self.manifest.shards)
        damaged = damaged_shards(self.manifest, folder, digests=size <= DIGESTS_UP_TO_BYTES)
        unusable = [problem for shard, problem in damaged if shard.split == "heldout"]
        limit, blocks = self.stream.damage_limit, sum(shard.blocks for shard, _ in damaged)
        if unusable:
            raise UserError(f"{unusable[0]}; held-out shards must be whole")
        if blocks > limit:
            raise UserError(
                f"{damaged[0][1]}; with it {len(damaged)} shards of {blocks} blocks are damaged, and "
                f"stream.max_damaged_share allows {limit}"
            )
        for _, problem in damaged:
            print(f"unibert: {problem}; its damaged blocks will be left out", file=sys.stderr)

    def _check_run_dir(self) -> None:
        """A run folder with a checkpoint must be of the same run."""
        if not complete_checkpoints(self.run_dir / "checkpoints"):
            return
        difference = first_difference(read_yaml(self.run_dir / "config.yaml"), to_dict(self.config))
        if difference is not None:
            raise UserError(
                f"{self.run_dir} belongs to a run of another configuration: {difference}; "
                "choose another run_dir or remove this one"
            )

    def _claim_run_dir(self) -> Claim:
        """Write the resolved configuration and that of the model, which the export needs."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            claim = Claim(self.run_dir)
            resolved = yaml.safe_dump(to_dict(self.config), sort_keys=False, allow_unicode=True)
            write_atomically(self.run_dir / "config.yaml", resolved)
            self.model.masked_lm.config.save_pretrained(self.run_dir / "model_config")
        except OSError as error:
            raise UserError(f"run_dir: {self.run_dir} cannot be written ({error.strerror}); choose another") from error
        return claim

    def _warn_of_poor_mixing(self) -> None:
        if warning := mixing_warning(self.config.stream, len(self.stream.languages)):
            print(f"unibert: {warning}", file=sys.stderr)

    def _build_model(self) -> UniBERT:
        config = self.config
        torch.manual_seed(config.seed)
        longest = max(phase.sequence_length for phase in self.timeline.phases())
        return UniBERT(
            build_masked_lm(config.model, self.manifest.vocab_size, longest),
            len(self.stream.languages),
            mlm=config.mlm,
            adversary=config.adversary,
            distillation=config.distillation,
            teacher=self._load_teacher(),
            attention=config.model.attention,
        )

    def _load_teacher(self) -> PreTrainedModel | None:
        if self.config.distillation is None:
            return None
        folder = self.config.distillation.teacher
        teacher = load_masked_lm(folder, "distillation.teacher")
        own = AutoTokenizer.from_pretrained(Path(self.config.corpus) / "tokenizer").get_vocab()
        try:
            same = AutoTokenizer.from_pretrained(folder).get_vocab() == own
        except (OSError, ValueError) as error:
            raise UserError(f"distillation.teacher: {folder} has no tokenizer that can be loaded") from error
        if not same:
            raise UserError(
                f"distillation.teacher: {folder} has another vocabulary than {self.config.corpus}/tokenizer; build the "
                "corpus with the teacher's tokenizer or train a teacher on this corpus"
            )
        device = self.placement.device
        return freeze(teacher, device, torch.bfloat16 if device.type == "cuda" else torch.float32)

    def _micro_batch_size(self, step: Step) -> int:
        """The most rows per micro-batch that divide this rank's share of the step evenly."""
        rows = step.num_sequences // self.placement.world_size
        limit = min(self.config.training.micro_batch_size, rows)
        return next(size for size in range(limit, 0, -1) if rows % size == 0)

    def _rows(self, first_step: int, state: dict[str, Any] | None) -> Iterator[StepBatch]:
        try:
            yield from self.stream.steps(first_step, state)
        except UserError as error:
            self.mistake = error
            # The others come to this exchange with the counts of the step that this rank cannot read.
            self._exchange([0.0] * len(fields(StepCounts)))

    def _restore(self) -> tuple[int, dict[str, Any] | None]:
        """The step to go on from, with the stream's state; the engine gets its weights back."""
        checkpoint = self.checkpoints.load_newest(self.engine)
        state = checkpoint["state"] if checkpoint else None
        if state and state["corpus"] != self.manifest.fingerprint:
            raise AgreedError(
                f"{self.config.corpus} is not the corpus that {self.run_dir} was trained on (its manifest differs); "
                "give the run its corpus back or choose another run_dir"
            )
        step = checkpoint["step"] if checkpoint else 0
        if self.is_main:
            self.metrics.keep_until(step)
            self.skipped.update(state["skipped_blocks"] if state else {})
        self.damage = state["damage"] if state else {}
        return step, state["stream"] if state else None

    def _begin_checkpoint(self, step: Step, lanes: dict[str, Any], heldout_mlm_loss: float | None) -> None:
        # No checkpoint may be ahead of metrics.jsonl.
        agree(self.mistake)
        merged = {lane: state for part in gather_objects(lanes) for lane, state in part.items()}
        skipped = sum(gather_objects(self.skipped), Counter())
        state = {
            "stream": merged,
            "corpus": self.manifest.fingerprint,
            "skipped_blocks": dict(skipped),
            "damage": self.damage,
        }
        self.checkpoints.begin(
            self.engine,
            step.index + 1,
            state,
            tokens=step.tokens_before + step.num_tokens,
            heldout_mlm_loss=heldout_mlm_loss,
        )

    # ---- one step ----------------------------------------------------------------------------------------------

    def _optimizer_step(self, step: Step, batches: list[Batch], weights: StepWeights) -> tuple[Sums, float]:
        """One update of the weights: the step's sums, and the norm of the gradient before clipping."""
        config, placement = self.config, self.placement
        # Dropout becomes a function of seed, step and rank, so that a resumed run repeats it.
        torch.manual_seed((config.seed * 1_000_003 + step.index) * 4099 + placement.rank)
        set_batch(
            self.engine,
            micro_batch_size=len(batches[0].input_ids),
            accumulation=len(batches),
            world_size=placement.world_size,
        )
        set_learning_rate(self.engine, self._learning_rate_factor(step))
        sums = Sums()
        losses = []
        for batch in batches:
            with collectives.one():
                objectives = self.engine(batch.to(placement.device), weights)
                self.engine.backward(objectives.total)
            losses.append(objectives.total.detach())
            sums.add({**objectives.sums, "loss": losses[-1] / weights.replicas})
            if len(losses) < len(batches):
                self.engine.step()
        self._raise_if_not_finite(step, torch.stack(losses), batches)
        own_norm = None if self._engine_measures_norm() else self._gradient_norm()
        self.engine.step()
        grad_norm = float(self.engine.get_global_grad_norm() if own_norm is None else own_norm)
        if not math.isfinite(grad_norm) and not self.engine.fp16_enabled():
            raise AgreedError(
                f"step {step.index + 1}: the gradient is not a number or infinite; the newest checkpoint "
                f"is kept; lower optimizer.learning_rate (now {config.optimizer.learning_rate}) or adversary.max_lambda"
            )
        return sums, grad_norm

    def _learning_rate_factor(self, step: Step) -> float:
        optimizer = self.config.optimizer
        # The middle of the step: neither the first nor the last step is wasted at a rate of 0.
        progress = step.progress + 0.5 * step.num_tokens / self.timeline.total_tokens
        return learning_rate_factor(
            progress, warmup=optimizer.warmup, decay=optimizer.decay, shape=optimizer.decay_shape
        )

    def _count(self, rows: StepBatch, batches: list[Batch]) -> StepCounts:
        """Sums over the whole global batch, all in one exchange; whether to stop travels along."""
        config = self.config
        class_weights = self._class_weights(rows.step.progress)
        masked = num_tokens = 0
        adversary_weight = 0.0
        for batch in batches:
            tokens = batch.document_ids >= 0
            masked += batch.masked_positions.numel()
            num_tokens += int(tokens.sum())
            classified = batch.document_languages
            if config.adversary is not None and config.adversary.level == "token":
                classified = classified[batch.document_ids[tokens]]
            adversary_weight += (
                classified.numel() if class_weights is None else float(class_weights[classified].sum().double())
            )
        # Checksums of 32 bits add up exactly in float64 for two million rows.
        own = [
            masked,
            num_tokens,
            adversary_weight,
            self.stop.requested,
            self.checkpoints.written,
            sum(rows.skipped.values()),
            rows.sequences.checksum(),
        ]
        sums = self._exchange(own)
        written = sums[4] == self.placement.world_size
        return StepCounts(sums[0], sums[1], sums[2], sums[3] > 0, written, int(sums[5]), int(sums[6]))

    def _exchange(self, counts: list[float]) -> list[float]:
        """``counts`` summed over the ranks.

        Raises:
            AgreedError: where a rank has met a mistake since the last exchange.
        """
        own = torch.tensor([*counts, self.mistake is not None], dtype=torch.float64, device=self.placement.device)
        *sums, mistakes = sum_over_ranks(own).tolist()
        if mistakes:
            agree(self.mistake)
        return sums

    def _step_weights(self, step: Step, batches: list[Batch], counts: StepCounts) -> StepWeights:
        """What turns sums into means, and the schedules' values."""
        config, device = self.config, self.placement.device
        class_weights = self._class_weights(step.progress)
        reversal = config.adversary.lambda_at(step.progress) if config.adversary else 0.0
        return StepWeights(
            replicas=self.placement.world_size * len(batches),
            masked_tokens=max(counts.masked_tokens, 1.0),
            tokens=counts.tokens,
            adversary_weight=counts.adversary_weight,
            mlm=value_at(config.mlm.weight, step.progress),
            distillation=config.distillation.weight_at(step.progress) if config.distillation else 0.0,
            reversal_lambda=torch.tensor(reversal, device=device),
            class_weights=None if class_weights is None else class_weights.to(device),
        )

    def _raise_if_damaged_beyond_limit(self, step: Step, skipped: dict[str, int]) -> None:
        """``skipped`` counts a shard's damage each time it is read, the limit counts it once."""
        blocks = {shard.path: shard.blocks for shard in self.manifest.shards}
        met = sum(map(Counter, gather_objects(skipped)), Counter())
        for path, count in met.items():
            self.damage[path] = max(self.damage.get(path, 0), min(count, blocks[path]))
        damaged, limit = sum(self.damage.values()), self.stream.damage_limit
        if damaged > limit:
            raise AgreedError(
                f"{self.config.corpus}: {damaged} damaged blocks by step {step.index + 1}, the latest in "
                f"{min(met)}; stream.max_damaged_share ({self.config.stream.max_damaged_share:g}) allows {limit}; find "
                "them with `unibert corpus verify` and copy them again"
            )

    def _class_weights(self, progress: float) -> torch.Tensor | None:
        """(L,) fp32: a language's weight in the discriminator's loss, the inverse of its share of the documents.

        Capped, or a language of a handful of documents would rule the clipped gradient when one of them comes up.
        """
        if self.config.adversary is None or not self.config.adversary.class_balanced:
            return None
        shares = torch.from_numpy(self.stream.document_shares(progress)).float()
        return torch.where(shares > 0, 1 / (len(shares) * shares), 0.0).clamp(max=MAX_CLASS_WEIGHT)

    def _engine_measures_norm(self) -> bool:
        return hasattr(self.engine.optimizer, "_global_grad_norm")

    def _gradient_norm(self) -> float:
        """2-norm over all parameters; plain data parallelism in fp32 has every gradient on every rank."""
        norms = [p.grad.norm() for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.stack(norms).norm())

    def _raise_if_not_finite(self, step: Step, losses: torch.Tensor, batches: list[Batch]) -> None:
        bad = (~torch.isfinite(losses)).sum().double()
        if not sum_over_ranks(bad.clone()).item():
            return
        here = [
            f"rank {self.placement.rank}: {', '.join(sorted({name for row in batch.origins for name in row})[:5])}"
            for batch, loss in zip(batches, losses.tolist(), strict=True)
            if loss != loss or loss in (float("inf"), float("-inf"))
        ]
        found = [name for part in gather_objects(here) for name in part]
        raise AgreedError(
            f"step {step.index + 1}: the loss is not finite in the batch of {'; '.join(found)}; the newest checkpoint "
            "is kept; look at these documents or lower optimizer.learning_rate"
        )

    # ---- what is written down ------------------------------------------------------------------------------------

    def _log(self, step: Step, sums: Sums, grad_norm: float, checksum: int) -> None:
        totals = sums.over_ranks()
        config = self.config
        done = step.tokens_before + step.num_tokens
        line: dict[str, Any] = {
            "step": step.index + 1,
            "tokens": done,
            "progress": done / self.timeline.total_tokens,
            "batch_checksum": checksum,
            "loss": nine_digits(float(totals["loss"])),
            **prediction_metrics(totals, self.stream.languages),
            **objective_metrics(totals),
            "grad_norm": nine_digits(grad_norm),
            "learning_rate": config.optimizer.learning_rate * self._learning_rate_factor(step),
            "masking_rate": value_at(config.stream.masking_rate, step.progress),
            "padding_share": 1 - float(totals["tokens"]) / step.num_tokens,
            "skipped_blocks": dict(sum(gather_objects(self.skipped), Counter())),
        }
        if config.adversary is not None:
            line["adversary_chance"] = float(self.stream.document_shares(step.progress).max())
            line["reversal_lambda"] = config.adversary.lambda_at(step.progress)
        if config.distillation is not None:
            line["distillation_weight"] = config.distillation.weight_at(step.progress)
        line["tokens_per_second"] = round(self.throughput.since_last(done), 1)
        line["memory_gib"] = round(peak_memory_gib(self.placement.device), 3)
        self._write(line)

    def _log_heldout(self, done: int) -> float | None:
        """Write the held-out losses; the MLM loss over all languages, in nats, if the corpus holds text out."""
        heldout_tokens = {code: self.manifest.tokens(code, "heldout") for code in self.stream.languages}
        if not any(heldout_tokens.values()):
            return None
        metrics = heldout_metrics(heldout_totals(self.engine, self.config, self.placement), heldout_tokens)
        entropy = self.manifest.unigram_entropy
        self._write(
            {
                "step": done,
                **metrics,
                "unigram_entropy": entropy["all"],
                "unigram_entropy_by_language": {code: entropy[code] for code in heldout_tokens if code in entropy},
            }
        )
        self.throughput.skip()
        return metrics["heldout_mlm_loss"]

    def _write(self, line: dict[str, Any]) -> None:
        if self.claim is None or self.mistake is not None:
            return
        try:
            self.claim.raise_if_superseded()
            self.metrics.append(line)
        except UserError as error:
            self.mistake = error
        except OSError as error:
            self.mistake = UserError(
                f"{self.run_dir / 'metrics.jsonl'}: cannot be written ({error.strerror}); fix that, and the same "
                "command continues from the newest checkpoint"
            )
        if self.config.training.monitors:
            numbers = {key: value for key, value in line.items() if isinstance(value, int | float)}
            self.engine.monitor.write_events([(f"unibert/{k}", v, line["step"]) for k, v in numbers.items()])
        if "loss" in line:
            self.progress_bar.set_postfix(loss=f"{line['loss']:.3f}", mlm=f"{line['mlm_loss']:.3f}", refresh=False)
        if not os.isatty(2):
            print(_summary(line, len(self.timeline)), file=sys.stderr, flush=True)


def _summary(line: dict[str, Any], num_steps: int) -> str:
    """A line of metrics for logs without a progress bar."""
    shown = (
        "loss",
        "mlm_loss",
        "adversary_accuracy",
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
        "heldout_mlm_loss",
        "unigram_entropy",
    )
    numbers = "  ".join(f"{key} {line[key]:.4g}" for key in shown if key in line)
    return f"step {line['step']}/{num_steps}  {numbers}"
