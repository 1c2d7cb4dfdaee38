"""The training loop: ``pretrain`` takes a run from its configuration to an exported model."""

from __future__ import annotations

import gc
import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from unibert.cpu_products import use_fastest_products
from unibert.errors import AgreedError, UserError
from unibert.evaluation.retrieval import KINDS
from unibert.model.unibert import StepWeights
from unibert.schedules import Step, learning_rate_factor, passes_multiple, value_at
from unibert.stream import Batch, StepBatch
from unibert.stream.ahead import prepare_ahead
from unibert.stream.forecast import loaders_warning, mixing_warning, shards_warning
from unibert.training.bad_steps import BadSteps, sentence
from unibert.training.branch import (
    begin_branch,
    branch_of_run,
    is_new,
    raise_if_other_architecture,
    rollbacks_of_run,
)
from unibert.training.checkpoint.claim import Claim
from unibert.training.checkpoint.manager import Checkpoints
from unibert.training.checkpoint.retention import RetentionPolicy, rank_checkpoint_bytes
from unibert.training.class_weights import class_weights
from unibert.training.config import RunConfig
from unibert.training.encoder_layers import set_up_layers
from unibert.training.engine import (
    build_engine,
    group_settings,
    restore_group_settings,
    set_batch,
    set_learning_rate,
    training_dtype,
    zero_stage,
)
from unibert.training.export import export_run
from unibert.training.freed_memory import keep_freed_memory
from unibert.training.heldout import HeldOut
from unibert.training.kernel_paths import announce_kernel_paths
from unibert.training.metrics import (
    Sums,
    Throughput,
    heldout_metrics,
    nine_digits,
    objective_metrics,
    peak_memory_gib,
    prediction_metrics,
    slowest_rank,
)
from unibert.training.metrics_file import read_metrics
from unibert.training.metrics_log import MetricsLog
from unibert.training.parent import Branch
from unibert.training.preparation import Preparation, check_shards, claim_run_dir, prepare, write_changed_config
from unibert.training.ranks.collective_counter import counted_collective
from unibert.training.ranks.collectives import agree, gather_objects, join, run_on_rank_0
from unibert.training.ranks.failures import explain
from unibert.training.ranks.placement import Placement
from unibert.training.ranks.readback import Readback, upload
from unibert.training.ranks.signals import Preempted, StopRequest, ignore_stop_signals
from unibert.training.ranks.watchdog import watched
from unibert.training.rollbacks import Rollback, RolledBack, skips_of, write_rollbacks
from unibert.training.run_history import RunHistory
from unibert.training.spikes import Spikes
from unibert.training.step_clock import StepClock
from unibert.training.step_counts import Announcements, PendingCounts, StepCounts, adversary_weight, count_tokens
from unibert.training.step_profile import StepProfile
from unibert.training.student_start import start_student
from unibert.training.weight_average import WeightAverage
from unibert.training.weight_update import WeightUpdate


def pretrain(config: RunConfig) -> Path:
    """Train, or continue, the run that ``config`` describes and export its model.

    Returns:
        The exported Hugging Face folder, ``run_dir/model``.

    Raises:
        UserError: for anything that the user can fix.
        LostRanksError: if other ranks have ended or do not respond.
        Preempted: if a signal has stopped the run after a checkpoint.
    """
    timeout = timedelta(minutes=config.training.collective_timeout_minutes)
    # Collectives time out one minute after the watchdog, whose sentence says more.
    placement = join(timeout + timedelta(minutes=1))
    stop = StopRequest()
    try:
        with watched(placement.rank, placement.world_size, timeout), RunHistory() as history:
            try:
                while True:
                    with suppress(RolledBack):
                        return Pretraining(config, placement, history, stop).run()
                    # The engine that is left must not be in memory beside the one that goes back.
                    gc.unfreeze()
                    gc.collect()
                    torch.cuda.empty_cache()
            except (RuntimeError, MemoryError) as error:
                explain(error, placement, config.training.micro_batch_size)
                raise
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class PreparedStep:
    """A step that can be made: this rank's part of its batch, and the counts that all ranks exchange."""

    step: Step
    batches: list[Batch]
    class_weights: torch.Tensor | None
    counts: PendingCounts[StepCounts]
    skipped: dict[str, int]
    """See `unibert.stream.StepBatch`, as for ``state``."""
    state: dict[str, Any]


@dataclass(frozen=True)
class MadeStep:
    """A step that the device has been told to make."""

    step: Step
    batches: list[Batch]
    norm_and_losses: Readback
    """Norm of the gradient before clipping, not finite if nothing was changed, and the loss of each micro-batch."""
    sums: Sums | None
    """None if the step is neither logged nor watched for spikes."""
    counts: StepCounts
    """Those of the global batch."""
    logged: bool


class Pretraining:
    """One run on one rank. Its attributes are the parts of the run; :meth:`run` is the loop."""

    def __init__(
        self, config: RunConfig, placement: Placement, history: RunHistory, stop: StopRequest | None = None
    ) -> None:
        keep_freed_memory(placement.device)
        use_fastest_products(placement.device)
        self.config = config
        self.placement = placement
        self.is_main = placement.rank == 0
        self.run_dir = Path(config.run_dir)
        self.branch: Branch | None = gather_objects(run_on_rank_0(lambda: branch_of_run(config)))[0]
        self.timeline = config.training.timeline(() if self.branch is None else self.branch.steps)
        self.rollbacks: list[Rollback] = (
            gather_objects(run_on_rank_0(lambda: rollbacks_of_run(config, self.branch)))[0] or []
        )
        prepared = self._prepare()
        self.manifest, self.stream, self.retrieval = prepared.manifest, prepared.stream, prepared.retrieval
        self.changes = prepared.changes
        run_on_rank_0(lambda: check_shards(prepared.manifest, prepared.stream))

        def begin() -> Claim:
            claim = self._claim(prepared)
            history.begin(self.run_dir, claim, self.timeline)
            return claim

        claim = run_on_rank_0(begin)
        if self.is_main:
            for warning in (
                mixing_warning(config.stream, len(self.stream.languages)),
                loaders_warning(config.stream, placement.world_size),
                shards_warning(self.manifest, self.stream.languages),
            ):
                if warning is not None:
                    print(f"unibert: {warning}", file=sys.stderr)
            announce_kernel_paths()
        self.checkpoints = Checkpoints(
            self.run_dir / "checkpoints",
            keep=RetentionPolicy(
                last=config.training.keep_checkpoints,
                every_tokens=config.training.keep_every_tokens,
                best=config.training.best_by if config.training.keep_best else None,
            ),
            claim=claim,
            rank=placement.rank,
            world_size=placement.world_size,
            zero_stage=zero_stage(prepared.ds_config),
            ema_half_life=config.training.ema_half_life,
            optimizer=config.optimizer.name,
        )
        start_student(prepared.model, config, prepared.manifest, placement.device)
        self.engine = build_engine(
            prepared.model,
            config,
            prepared.ds_config,
            micro_batch_size=self._micro_batch_size(config.training.timeline()[0]),
            world_size=placement.world_size,
            load_universal=self.checkpoints.prepare_newest(),
        )
        for sentence_of_layers in set_up_layers(prepared.model, config.training):
            if self.is_main:
                print(f"unibert: {sentence_of_layers}", file=sys.stderr)
        self.utilisation = prepared.utilisation
        self.clock = StepClock(placement.device)
        self.profile = StepProfile(config.profiled_steps() if self.is_main else None, self.run_dir, placement.device)
        self.weight_update = WeightUpdate(self.engine, config.optimizer.max_grad_norm)
        self.average = WeightAverage(self.engine.basic_optimizer, config.training.ema_half_life)
        self.checkpoints.reserve_memory(
            rank_checkpoint_bytes(
                zero_stage(prepared.ds_config),
                prepared.num_parameters,
                training_dtype(prepared.ds_config).itemsize,
                prepared.num_moments,
                rank=placement.rank,
                world_size=placement.world_size,
            ),
            pinned=placement.device.type == "cuda",
        )
        self.log = MetricsLog(self.run_dir, claim, len(self.timeline))
        self.heldout = HeldOut(config, placement, prepared.manifest)
        self.skipped: Counter[str] = Counter()
        """Damaged blocks by shard that this rank has skipped, each time it has read them."""
        self.damage: dict[str, int] = {}
        """Damaged blocks by shard that all ranks have met, each counted once."""
        self.bad_steps = BadSteps(config.training.max_bad_steps, scales_loss=self.engine.fp16_enabled())
        self.spikes = None if config.training.spikes is None else Spikes(config.training.spikes)
        self.unjudged: MadeStep | None = None
        """The step that the device may not have finished."""
        self.stop = StopRequest() if stop is None else stop
        self.mistake: UserError | None = None
        """A mistake that this rank has met and the others do not know yet."""

    def run(self) -> Path:
        """Train from the newest checkpoint to the last step, then export the model."""
        try:
            self._train()
        except AgreedError:
            # All ranks are here. The pending checkpoint is older than the error.
            self.checkpoints.finish()
            raise
        finally:
            self.log.close()
        run_on_rank_0(lambda: export_run(self.run_dir))
        model = self.run_dir / "model"
        if self.is_main:
            next_commands = f"unibert report {self.run_dir}, unibert evaluate {model} --retrieval DIR"
            print(f"The model is in {model}. Next: {next_commands}", flush=True)
        return model

    def _train(self) -> None:
        training = self.config.training
        first_step, stream_state = self._restore()
        if first_step == len(self.timeline):
            self._report_finished()
            return
        self._start_log(first_step)
        self._log_changes(first_step)
        self._log_rollbacks(first_step)
        if first_step == 0:
            self._log_retrieval(0, 0)
        # Otherwise each full collection would look through 400,000 objects of the libraries, and make a rank late.
        gc.collect()
        gc.freeze()
        self.throughput = Throughput(self.timeline[first_step].tokens_before)
        for prepared in self._prepared_steps(first_step, stream_state):
            counts = self._exchanged(prepared)
            if counts.damaged_blocks:
                self._raise_if_damaged_beyond_limit(prepared.step, prepared.skipped)
            self.skipped.update(prepared.skipped)
            step, done = prepared.step, prepared.step.index + 1
            last = done == len(self.timeline)
            due, logged = done % training.checkpoint_every == 0, done % training.log_every == 0 or last
            announced = self._begin_announcing()
            self.profile.before(done)
            made = self._optimizer_step(prepared, counts, logged=logged)
            self.profile.after(done)
            told = announced.result()
            if told.ranks_written == self.placement.world_size:
                self.checkpoints.publish()
            stopping = told.stop_requests > 0
            # To judge the step before, the host waits for the device, which then still has this one to do.
            self._judge(self.unjudged)
            self.unjudged = made
            measures = self._measures_loss(done) or self._measures_retrieval(step)
            if logged or due or stopping or measures:
                self._judge(self.unjudged)
                self.unjudged = None
            with self.throughput.paused():
                scores = self._measure(step)
            # Among bad or high steps the weights may be spoilt, and a checkpoint would push out one that is not.
            if last or stopping or (due and not self._is_suspicious):
                self._begin_checkpoint(step, prepared.state, scores)
            self.log.advance()
            if stopping and not last:
                self.checkpoints.finish()
                ignore_stop_signals()
                raise Preempted(f"{self.stop.name} received: stopped after step {done}, checkpoint saved")
        self.checkpoints.finish()

    def _report_finished(self) -> None:
        if self.is_main:
            print(
                f"unibert: {self.run_dir} is finished: it has all {len(self.timeline)} steps; to train it further, "
                f"start a new run with --run_dir NEW --resume_from {self.run_dir} and more --training.tokens; to start "
                "anew, choose another --run_dir or remove this one",
                flush=True,
            )

    # ---- start and checkpoints -----------------------------------------------------------------------------------

    def _prepare(self) -> Preparation:
        """Prepare this rank. Raise on all ranks if any rank has met a mistake."""
        prepared, mistake = None, None
        try:
            past = None if self.branch is None else self.branch.stream
            prepared = prepare(self.config, self.placement, self.timeline, past, skips_of(self.rollbacks))
        except UserError as error:
            mistake = error
        agree(mistake)
        assert prepared is not None
        return prepared

    def _claim(self, prepared: Preparation) -> Claim:
        """Claim the run folder and, in a new branch, take the parent's checkpoint over."""
        branch = self.branch if is_new(self.config) else None
        if branch is not None:
            raise_if_other_architecture(branch, prepared.model)
        claim = claim_run_dir(self.config, prepared.model, changed=bool(prepared.changes))
        if is_new(self.config):
            write_rollbacks(self.run_dir, self.rollbacks)
        if branch is not None:
            begin_branch(branch, self.config, prepared.stream)
        return claim

    def _micro_batch_size(self, step: Step) -> int:
        """The largest micro-batch, up to the configured size, that divides this rank's share of the step evenly."""
        share = step.num_sequences // self.placement.world_size
        limit = min(self.config.training.micro_batch_size, share)
        return next(size for size in range(limit, 0, -1) if share % size == 0)

    def _prepared_steps(self, first_step: int, state: dict[str, Any] | None) -> Iterator[PreparedStep]:
        """Yield the steps, each when the next one is prepared, so that the ranks need not wait for the exchange."""
        ahead: PreparedStep | None = None
        with closing(prepare_ahead(self.stream.steps(first_step, state), self._micro_batch_size)) as steps:
            for index in range(first_step, len(self.timeline)):
                try:
                    with self.clock.measures("data"):
                        step_batch, batches = next(steps)
                    prepared = self._prepare_step(step_batch, batches)
                except UserError as error:
                    self.mistake = error
                    # The other ranks exchange the counts of the step that this rank cannot read.
                    prepared = PreparedStep(
                        step=self.timeline[index],
                        batches=[],
                        class_weights=None,
                        counts=self._begin_exchange(StepCounts()),
                        skipped={},
                        state={},
                    )
                if ahead is not None:
                    yield ahead
                ahead = prepared
                if not prepared.batches:
                    break
            if ahead is not None:
                yield ahead

    def _restore(self) -> tuple[int, dict[str, Any] | None]:
        """Load the newest checkpoint into the engine; return the step to continue from and the stream's state."""
        settings = group_settings(self.engine)
        checkpoint = self.checkpoints.load_newest(self.engine)
        restore_group_settings(self.engine, settings)
        self.average.forget_unless_wanted()
        state = checkpoint["state"] if checkpoint else None
        if state and state["corpus"] != self.manifest.fingerprint:
            raise AgreedError(
                f"{self.config.corpus} is not the corpus that {self.run_dir} was trained on (its manifest differs); "
                "restore that corpus or choose another run_dir"
            )
        step = checkpoint["step"] if checkpoint else 0
        if self.is_main:
            self.skipped.update(state["skipped_blocks"] if state else {})
        self.damage = state["damage"] if state else {}
        if state and "bad_steps" in state:  # not in checkpoints of version 0.1.0
            self.bad_steps.restore(state["bad_steps"])
        if state and self.spikes is not None and state.get("spikes") is not None:
            self.spikes.restore(state["spikes"])
        return step, state["stream"] if state else None

    def _begin_checkpoint(self, step: Step, lanes: dict[str, Any], scores: dict[str, float]) -> None:
        # A checkpoint must not be ahead of metrics.jsonl.
        agree(self.mistake)
        merged = {lane: state for part in gather_objects(lanes) for lane, state in part.items()}
        state = {
            "stream": merged,
            "corpus": self.manifest.fingerprint,
            "skipped_blocks": self._skipped_by_all_ranks(),
            "damage": self.damage,
            "bad_steps": self.bad_steps.state(),
            "spikes": None if self.spikes is None else self.spikes.state(),
        }
        self.checkpoints.begin(
            self.engine,
            step.index + 1,
            state,
            tokens=step.tokens_before + step.num_tokens,
            scores=scores,
        )

    # ---- one step ------------------------------------------------------------------------------------------------

    def _prepare_step(self, step_batch: StepBatch, batches: list[Batch]) -> PreparedStep:
        """Begin to exchange the counts of a step."""
        step, adversary = step_batch.step, self.config.adversary
        weights = class_weights(adversary, self.stream, step.progress)
        masked, tokens = count_tokens(batches)
        counts = StepCounts(
            masked_tokens=masked,
            tokens=tokens,
            documents=sum(int(batch.taught.sum()) for batch in batches),
            adversary_weight=adversary_weight(batches, adversary, weights),
            damaged_blocks=sum(step_batch.skipped.values()),
            checksum=step_batch.sequences.checksum(),
        )
        if self.placement.device.type == "cuda":
            batches = [batch.pinned() for batch in batches]
        return PreparedStep(
            step=step,
            batches=batches,
            class_weights=weights,
            counts=self._begin_exchange(counts),
            skipped=step_batch.skipped,
            state=step_batch.state,
        )

    def _begin_exchange(self, counts: StepCounts) -> PendingCounts[StepCounts]:
        """Begin to sum ``counts`` over all ranks, with the number of ranks that have met a mistake."""
        return PendingCounts(replace(counts, mistakes=int(self.mistake is not None)), self.placement.device)

    def _begin_announcing(self) -> PendingCounts[Announcements]:
        """Begin to tell the other ranks what this one knows before a step, which it acts on after the step."""
        own = Announcements(
            stop_requests=int(self.stop.requested),
            ranks_written=int(self.checkpoints.written),
        )
        return PendingCounts(own, self.placement.device)

    def _exchanged(self, prepared: PreparedStep) -> StepCounts:
        """Return the counts of the whole global batch.

        Raises:
            AgreedError: if a rank had met a mistake when the exchange began.
        """
        sums = prepared.counts.result()
        if sums.mistakes:
            agree(self.mistake)
        return sums

    def _step_weights(self, prepared: PreparedStep, counts: StepCounts) -> StepWeights:
        """The divisors that turn sums into means, and the schedules' values."""
        config, device, progress = self.config, self.placement.device, prepared.step.progress
        reversal = config.adversary.lambda_at(progress) if config.adversary else 0.0
        weights = prepared.class_weights
        return StepWeights(
            replicas=self.placement.world_size * len(prepared.batches),
            masked_tokens=max(counts.masked_tokens, 1.0),
            tokens=counts.tokens,
            documents=max(counts.documents, 1.0),
            adversary_weight=counts.adversary_weight,
            mlm=value_at(config.mlm.weight, progress),
            distillation=config.distillation.weights_at(progress) if config.distillation else {},
            reversal_lambda=torch.full((), reversal, device=device),
            class_weights=None if weights is None else upload(weights, device),
        )

    def _optimizer_step(self, prepared: PreparedStep, counts: StepCounts, *, logged: bool) -> MadeStep:
        """Update the weights once, unless the gradient is not finite, which `_judge` finds out.

        Args:
            prepared: the step.
            counts: those of its global batch.
            logged: whether it will be logged.
        """
        config, placement, step, batches = self.config, self.placement, prepared.step, prepared.batches
        weights = self._step_weights(prepared, counts)
        # Dropout becomes a function of seed, step and rank, so that a resumed run repeats it.
        torch.manual_seed((config.seed * 1_000_003 + step.index) * 4099 + placement.rank)
        set_batch(
            self.engine,
            micro_batch_size=len(batches[0].input_ids),
            accumulation=len(batches),
            world_size=placement.world_size,
        )
        set_learning_rate(self.engine, self._learning_rate_factor(step))
        self.average.begin_step(step.num_tokens)
        sums = Sums() if logged or self.spikes is not None else None
        losses = []
        for batch in batches:
            with counted_collective():
                with self.clock.measures("forward"):
                    objectives = self.engine(batch.to(placement.device), weights)
                with self.clock.measures("backward"):
                    self.engine.backward(objectives.total)
            losses.append(objectives.total.detach().float())
            if sums is not None:
                sums.add({**objectives.sums, "loss": losses[-1] / weights.replicas})
            if len(losses) < len(batches):
                self.engine.step()
        with self.clock.measures("update"):
            norm = self.weight_update.make()
        self.clock.count_step()
        return MadeStep(step, batches, Readback(torch.stack([norm, *losses])), sums, counts, logged)

    def _judge(self, made: MadeStep | None) -> None:
        """Find out whether a step has changed the weights, once it has been made, and log it. Ranks do so together."""
        if made is None:
            return
        grad_norm, *losses = made.norm_and_losses.tolist()
        if not math.isfinite(grad_norm):
            self._leave_out(made.step, losses, made.batches)
            return
        self.bad_steps.count_good()
        if made.sums is None:
            return
        if self.spikes is not None:
            self._watch_for_spikes(self.spikes, made.step, made.sums)
        if made.logged:
            self._log_step(made.step, made.sums, grad_norm, made.counts)

    def _leave_out(self, step: Step, losses: list[float], batches: list[Batch]) -> None:
        """Count and log a step that has changed nothing."""
        number = step.index + 1
        line = self.bad_steps.count_bad(number, losses, batches)
        if self.is_main:
            why = sentence(line["left_out"], line["origins"])
            print(f"unibert: step {number} is left out: {why}", file=sys.stderr, flush=True)
        self._write({"step": number, "tokens": step.tokens_before + step.num_tokens, **line})

    @property
    def _is_suspicious(self) -> bool:
        return self.bad_steps.in_a_row > 0 or (self.spikes is not None and bool(self.spikes.high))

    def _watch_for_spikes(self, spikes: Spikes, step: Step, sums: Sums) -> None:
        """Go back to an older checkpoint if the loss of this step completes a spike.

        Raises:
            RolledBack: if the run has gone back.
            AgreedError: if it has gone back too often.
        """
        totals = sums.over_ranks()
        masked = float(totals["masked"])
        if not spikes.is_spike(float(totals["mlm"]) / masked if masked else float(totals["loss"])):
            return
        done, settings = step.index + 1, self.config.training.spikes
        assert settings is not None
        losses = [nine_digits(loss) for loss in spikes.high]
        first = done - len(losses) + 1
        what = f"a loss spike from step {first} to {done} ({losses[0]:.3g} to {max(losses):.3g}, the steps before are "
        what += f"below {spikes.bound:.3g})"
        if len(self.rollbacks) >= settings.max_rollbacks:
            raise AgreedError(
                f"{what}, and the run has gone back {len(self.rollbacks)} times (training.spikes.max_rollbacks); the "
                "checkpoints before it are kept; look at the data, or continue with a lower optimizer.learning_rate, "
                "which --allow_change permits"
            )
        self.checkpoints.finish()
        back_to = self.checkpoints.go_back(first - 1 - settings.margin, self.config.training.checkpoint_every)
        if back_to is None:
            if self.is_main:
                print(
                    f"unibert: {what}, and no checkpoint is {settings.margin} steps older", file=sys.stderr, flush=True
                )
            spikes.forget()
            return
        rollback = Rollback(back_to, first, done, losses)
        run_on_rank_0(lambda: write_rollbacks(self.run_dir, [*self.rollbacks, rollback]))
        if self.is_main:
            print(f"unibert: {what}: back to step {back_to}", file=sys.stderr, flush=True)
        raise RolledBack

    def _log_rollbacks(self, first_step: int) -> None:
        """Log the rollbacks that metrics.jsonl does not have yet, or not any more since the run went back further."""

        def log() -> None:
            logged = {record["rolled_back"] for record in read_metrics(self.log.path).rollbacks}
            for number, one in enumerate(self.rollbacks, start=1):
                if number not in logged:
                    self.log.write({"step": first_step, "rolled_back": number, **asdict(one)})

        if self.rollbacks:
            run_on_rank_0(log)

    def _learning_rate_factor(self, step: Step) -> float:
        optimizer = self.config.optimizer
        # The middle of the step, so that neither the first nor the last step is wasted at a rate of 0.
        progress = step.progress + 0.5 * step.num_tokens / self.timeline.total_tokens
        return learning_rate_factor(
            progress, warmup=optimizer.warmup, decay=optimizer.decay, shape=optimizer.decay_shape
        )

    def _raise_if_damaged_beyond_limit(self, step: Step, skipped: dict[str, int]) -> None:
        """``skipped`` counts a shard's damage each time it is read; the limit counts it once."""
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

    def _log_changes(self, first_step: int) -> None:
        """Log with which values the run goes on, if they have changed, and keep them."""
        if not self.changes:
            return
        changed = {key: {"from": before, "to": after} for key, (before, after) in self.changes.items()}

        def log() -> None:
            for key, (before, after) in self.changes.items():
                print(f"unibert: from step {first_step + 1}, {key} is {after} instead of {before}", file=sys.stderr)
            self.log.write({"step": first_step, "changed": changed, "reason": self.config.change_reason})
            # The other way round, a kill in between would lose the line.
            write_changed_config(self.config)

        run_on_rank_0(log)

    # ---- metrics -------------------------------------------------------------------------------------------------

    def _log_step(self, step: Step, sums: Sums, grad_norm: float, counts: StepCounts) -> None:
        totals = sums.over_ranks()
        config = self.config
        done = step.tokens_before + step.num_tokens
        line: dict[str, Any] = {
            "step": step.index + 1,
            "tokens": done,
            "progress": done / self.timeline.total_tokens,
            "batch_checksum": counts.checksum,
            "loss": nine_digits(float(totals["loss"])),
            **prediction_metrics(totals, self.stream.languages),
            **objective_metrics(totals),
            "grad_norm": nine_digits(grad_norm),
            "learning_rate": config.optimizer.learning_rate * self._learning_rate_factor(step),
            "masking_rate": value_at(config.stream.masking_rate, step.progress),
            "padding_share": 1 - float(totals["tokens"]) / step.num_tokens,
            "skipped_blocks": self._skipped_by_all_ranks(),
            "left_out_steps": dict(self.bad_steps.counts),
        }
        if config.adversary is not None:
            line["adversary_chance"] = float(self.stream.document_shares(step.progress).max())
            line["reversal_lambda"] = config.adversary.lambda_at(step.progress)
        if config.distillation is not None:
            line["distillation_weight"] = value_at(config.distillation.weight, step.progress)
        line |= self._speed(step, counts)
        line["memory_gib"] = round(peak_memory_gib(self.placement.device), 3)
        self._write(line)

    def _speed(self, step: Step, counts: StepCounts) -> dict[str, Any]:
        """Throughput since the last log line, and where the time went."""
        rate = self.throughput.since_last(step.tokens_before + step.num_tokens)
        seconds = self.clock.since_last()
        speed: dict[str, Any] = {"tokens_per_second": round(rate, 1)}
        if self.placement.world_size > 1:
            speed["slowest_rank"] = slowest_rank(seconds["forward"])
        if self.is_main:
            with self.throughput.paused():
                real = rate * counts.tokens / step.num_tokens
                mfu = self.utilisation.share(real, counts.tokens, counts.masked_tokens, counts.documents)
            speed["mfu"] = round(mfu, 4)
        speed["seconds_per_step"] = {part: round(mean, 6) for part, mean in seconds.items()}
        return speed

    def _measure(self, step: Step) -> dict[str, float]:
        """Log what is to be measured after ``step``; return the figures that tell a better checkpoint from a worse."""
        done = step.index + 1
        scores: dict[str, float] = {}
        if self._measures_loss(done):
            scores |= self._log_heldout(done, step.tokens_before + step.num_tokens)
        if self._measures_retrieval(step):
            scores |= self._log_retrieval(done, step.tokens_before + step.num_tokens)
        return scores

    def _measures_loss(self, done: int) -> bool:
        """Whether the held-out loss is measured after ``done`` steps."""
        every = self.config.training.evaluate_every
        return self.config.predicts_tokens and (done == len(self.timeline) or (every > 0 and done % every == 0))

    def _measures_retrieval(self, step: Step) -> bool:
        """Whether retrieval is measured after ``step``.

        A checkpoint that a signal asks for has no figure: without the signal, the run would not have measured here.
        """
        training, done = self.config.training, step.index + 1
        return (
            done == len(self.timeline)
            or passes_multiple(
                training.retrieval_every_tokens, step.tokens_before, step.tokens_before + step.num_tokens
            )
            or (training.keeps_best_by_retrieval and done % training.checkpoint_every == 0)
        )

    def _log_retrieval(self, done: int, tokens: int) -> dict[str, float]:
        """Log retrieval and language probe; return the accuracies. Do nothing in a run without sentences."""
        if self.retrieval is None:
            return {}
        from unibert.training.retrieval import retrieval_metrics

        metrics = retrieval_metrics(self.engine, self.retrieval, self.placement)
        self._write({"step": done, "tokens": tokens, **metrics})
        return {key: metrics[key] for key in (f"retrieval_{kind}" for kind in KINDS)}

    def _log_heldout(self, done: int, tokens: int) -> dict[str, float]:
        """Log the held-out losses; return the MLM loss over all languages in nats, if the corpus has held-out text."""
        heldout_tokens = {code: self.manifest.tokens(code, "heldout") for code in self.stream.languages}
        if not any(heldout_tokens.values()):
            return {}
        metrics = heldout_metrics(self.heldout.totals(self.engine), heldout_tokens)
        entropy = self.manifest.unigram_entropy
        self._write(
            {
                "step": done,
                "tokens": tokens,
                **metrics,
                "unigram_entropy": entropy["all"],
                "unigram_entropy_by_language": {code: entropy[code] for code in heldout_tokens if code in entropy},
            }
        )
        return {"heldout_mlm_loss": metrics["heldout_mlm_loss"]}

    def _start_log(self, first_step: int) -> None:
        try:
            self.log.start_after(first_step, self.timeline[first_step].tokens_before, self.config)
        except UserError as error:
            self.mistake = error

    def _write(self, line: dict[str, Any]) -> None:
        if self.mistake is not None:
            return
        try:
            self.log.write(line)
        except UserError as error:
            self.mistake = error

    def _skipped_by_all_ranks(self) -> dict[str, int]:
        return dict(sum(gather_objects(self.skipped), Counter()))
