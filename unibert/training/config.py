"""The run file that ``unibert pretrain`` reads, one dataclass per section."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from unibert.model.config import AdversaryConfig, DistillationConfig, MLMConfig, ModelConfig
from unibert.schedules import DecayShape, IntegerSchedule, PastSteps, Timeline, ever_positive
from unibert.stream.config import DELIVERY_KEYS, StreamConfig


@dataclass(kw_only=True)
class OptimizerConfig:
    """The optimizer and its warmup-stable-decay schedule. Norms and biases are not decayed."""

    name: Literal["adamw", "muon"] = "adamw"
    """``muon`` updates the matrices of the encoder's layers by Muon, all else by AdamW, with the same learning rate."""

    learning_rate: float = 1e-3
    """Peak learning rate of the encoder."""

    layers_learning_rate: float | None = None
    """Peak learning rate of the matrices of the encoder's layers, if it is not ``learning_rate``. Embeddings, head and
    norms bear a higher one than they do (docs/optimizers.md)."""

    momentum: float = 0.95
    """Muon's momentum."""

    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's moment decays."""

    eps: float = 1e-6
    """AdamW's denominator term."""

    weight_decay: float = 0.01
    """Decoupled weight decay, of matrices only."""

    max_grad_norm: float = 1.0
    """Gradients are clipped to this global 2-norm."""

    warmup: float = 0.02
    """Share of the run over which the learning rate rises from 0."""

    decay: float = 0.1
    """Share of the run, at its end, over which the learning rate falls to 0."""

    decay_shape: DecayShape = "1-sqrt"
    """Shape of that fall."""

    def __post_init__(self) -> None:
        if not (self.warmup >= 0 and self.decay >= 0 and self.warmup + self.decay <= 1):
            raise ValueError(
                f"optimizer.warmup: warmup {self.warmup} and decay {self.decay} are shares of the run; neither may be "
                "negative, nor their sum exceed 1"
            )
        if self.learning_rate <= 0:
            raise ValueError(f"optimizer.learning_rate: must be positive, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum: must be at least 0 and below 1, got {self.momentum}")
        if self.layers_learning_rate is not None and self.layers_learning_rate <= 0:
            raise ValueError(
                f"optimizer.layers_learning_rate: must be positive, or null for learning_rate, got "
                f"{self.layers_learning_rate}"
            )
        if self.max_grad_norm <= 0:
            raise ValueError(f"optimizer.max_grad_norm: must be positive, got {self.max_grad_norm}")

    @property
    def has_layers_apart(self) -> bool:
        """Whether the matrices of the layers are groups of parameters of their own."""
        return self.name == "muon" or self.layers_learning_rate is not None


@dataclass(kw_only=True)
class SpikeConfig:
    """When the loss counts as spiking, and how often the run goes back."""

    threshold: float = 8.0
    """A step is high if its loss is so many standard deviations, by median and MAD, above that of the steps before."""

    window: int = 200
    """Number of those steps."""

    steps: int = 5
    """Number of high steps in a row that are a spike."""

    margin: int = 100
    """The run goes back to the newest checkpoint that is at least so many steps older than the spike: the data that
    causes a spike comes before it (PaLM, arXiv 2204.02311, section 5.1, goes back about 100 steps)."""

    max_rollbacks: int = 5
    """Number of rollbacks after which the next spike ends the run."""

    def __post_init__(self) -> None:
        for name, minimum in (("threshold", 0), ("window", 2), ("steps", 1), ("margin", 0), ("max_rollbacks", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"training.spikes.{name}: must be at least {minimum}, got {getattr(self, name)}")


@dataclass(kw_only=True)
class TrainingConfig:
    """Length, batch size, checkpoints, monitoring."""

    tokens: int
    """Length of the run in tokens, padding included; in a branch, with those of its parent up to the branch point. The
    last step may exceed it by less than one step."""

    global_batch_size: IntegerSchedule = 256
    """Sequences per optimizer step over all ranks, a multiple of ``stream.lanes``. Points change it during the run."""

    micro_batch_size: int = 32
    """Maximum number of sequences in one forward pass of a rank. Gradient accumulation does the rest."""

    sequence_length: IntegerSchedule = 512
    """Tokens per sequence. Points change it during the run."""

    ds_config: str = "zero1"
    """DeepSpeed JSON file, or the name of one in ``ds_configs`` (zero0 to zero3)."""

    compile: bool = False
    """Compile the encoder's layers, the student's and the teacher's, with torch.compile. It needs a compiler, and
    more time at the first step. Not with ZeRO 3."""

    activation_checkpointing: int | Literal["selective"] | None = None
    """Compute activations again in the backward pass instead of keeping them. ``1`` keeps nothing but the input of each
    layer, ``2`` of every second, and so on; ``selective`` computes again what costs little, no matrix products; null
    computes nothing again. It saves memory and changes no loss."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl. Each line describes its own step."""

    evaluate_every: int = 0
    """Steps between measurements of the held-out MLM loss. 0 measures it after the last step only. Runs that train no
    predictions never do."""

    heldout_sequences: int = 64
    """Maximum number of held-out sequences per language to measure."""

    retrieval: str | None = None
    """Folder of aligned sentences, as ``unibert evaluate --retrieval`` takes it. Retrieval of translations and a
    language probe are measured on them, with the last layer's vectors, before the first and after the last step."""

    retrieval_every_tokens: int | None = None
    """Also measure them after the first step at or after each multiple of this number of tokens."""

    retrieval_sentences: int = 100
    """Number of lines to use of each aligned set, from its beginning, and of sentences per language for the probe."""

    checkpoint_every: int = 500
    """Steps between checkpoints. The last step always has one."""

    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""

    keep_every_tokens: int | None = None
    """Keep for ever the first checkpoint at or after each multiple of this number of tokens."""

    keep_best: bool = False
    """Also keep the checkpoint that is best by ``best_by``."""

    best_by: Literal["heldout_mlm_loss", "retrieval_raw", "retrieval_centred", "retrieval_margin"] = "heldout_mlm_loss"
    """What ``keep_best`` goes by: the lowest held-out MLM loss, which needs ``evaluate_every``, or the highest top-1
    accuracy, which needs ``retrieval`` and is then measured with every checkpoint of ``checkpoint_every`` too."""

    ema_half_life: int | None = None
    """Half-life, in tokens, of an exponential moving average of the weights, which ``unibert export --ema`` writes as a
    model. Null for none. It takes 4 bytes per parameter, divided among the ranks from ZeRO 1 on."""

    collective_timeout_minutes: float = 15.0
    """Minutes that the ranks wait for a rank before the run names it and ends. Keep it well above 0.5."""

    max_bad_steps: int = 10
    """Number of steps in a row whose loss or gradient is not finite that end the run. Fewer are left out: they change
    no weight, and metrics.jsonl names their documents."""

    spikes: SpikeConfig | None = None
    """Go back to a checkpoint when the MLM loss spikes, and skip the data from there to the spike. null does not."""

    restarts_without_progress: int = 3
    """Consecutive times that Slurm may restart the run without a newer checkpoint."""

    monitors: list[Literal["tensorboard", "csv", "wandb"]] = field(default_factory=list)
    """Monitors that also receive the metrics. They write to ``run_dir/monitor``, one curve over all starts."""

    def __post_init__(self) -> None:
        for name in (
            "micro_batch_size",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "max_bad_steps",
            "heldout_sequences",
            "collective_timeout_minutes",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"training.{name}: must be positive, got {getattr(self, name)}")
        if isinstance(self.activation_checkpointing, int) and self.activation_checkpointing <= 0:
            raise ValueError(
                "training.activation_checkpointing: must be positive, selective, or null for none, got "
                f"{self.activation_checkpointing}"
            )
        if self.compile and self.activation_checkpointing == "selective":
            raise ValueError(
                "training.activation_checkpointing: selective cannot be combined with training.compile, which decides "
                "what its layers keep; set this to null, or to 1 to keep a layer's input alone"
            )
        if self.keep_every_tokens is not None and self.keep_every_tokens <= 0:
            raise ValueError(f"training.keep_every_tokens: must be positive or null, got {self.keep_every_tokens}")
        if self.ema_half_life is not None and self.ema_half_life <= 0:
            raise ValueError(f"training.ema_half_life: must be positive or null, got {self.ema_half_life}")
        if self.retrieval_every_tokens is not None and self.retrieval_every_tokens <= 0:
            raise ValueError(
                f"training.retrieval_every_tokens: must be positive or null, got {self.retrieval_every_tokens}"
            )
        if self.retrieval_every_tokens is not None and self.retrieval is None:
            raise ValueError(
                "training.retrieval_every_tokens: there is nothing to measure; name a folder of aligned sentences in "
                "training.retrieval, or leave this out"
            )
        if self.retrieval_sentences < 2:
            raise ValueError(f"training.retrieval_sentences: must be at least 2, got {self.retrieval_sentences}")
        if self.keeps_best_by_retrieval and self.retrieval is None:
            raise ValueError(
                f"training.best_by: {self.best_by} is not measured; name a folder of aligned sentences in "
                "training.retrieval, or judge by heldout_mlm_loss"
            )
        if self.keeps_best_by_loss and (self.evaluate_every <= 0 or self.checkpoint_every % self.evaluate_every):
            raise ValueError(
                f"training.keep_best: checkpoint_every ({self.checkpoint_every}) must be a multiple of evaluate_every "
                f"({self.evaluate_every}), and both positive"
            )
        self.timeline()

    @property
    def keeps_best_by_loss(self) -> bool:
        """Whether the best checkpoint is kept, by the held-out MLM loss."""
        return self.keep_best and self.best_by == "heldout_mlm_loss"

    @property
    def keeps_best_by_retrieval(self) -> bool:
        """Whether the best checkpoint is kept, by retrieval."""
        return self.keep_best and self.best_by != "heldout_mlm_loss"

    def timeline(self, past: PastSteps = ()) -> Timeline:
        """Every step's batch and sequence length, those of a branch's parent first.

        Raises:
            ValueError: for a malformed schedule.
        """
        try:
            return Timeline(self.tokens, self.global_batch_size, self.sequence_length, past=past)
        except ValueError as error:
            raise ValueError(f"training.{error}") from error


@dataclass(kw_only=True)
class WandbConfig:
    """Weights & Biases, if ``training.monitors`` names wandb."""

    project: str = "unibert"
    """Project of the run."""

    name: str | None = None
    """Name of the run. Default: that of the run folder."""

    entity: str | None = None
    """User or team. Default: that of the account."""

    group: str | None = None
    """Group of runs, as of one study."""

    tags: list[str] = field(default_factory=list)
    """Tags of the run."""

    mode: Literal["online", "offline"] = "online"
    """With ``offline``, files in ``run_dir/monitor/wandb``, which ``wandb sync`` sends later."""


@dataclass(kw_only=True)
class RunConfig:
    """One pre-training run."""

    run_dir: str
    """Folder for everything that the run writes."""

    corpus: str
    """Corpus folder made by ``unibert corpus build``."""

    training: TrainingConfig
    """Length, batch, checkpoints, monitoring."""

    seed: int = 0
    """Seeds the initial weights, the stream and dropout."""

    stream: StreamConfig = field(default_factory=StreamConfig)
    """Mixture, packing, masking."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The student encoder."""

    mlm: MLMConfig = field(default_factory=MLMConfig)
    """Masked language modelling."""

    adversary: AdversaryConfig | None = None
    """The language adversary."""

    distillation: DistillationConfig | None = None
    """Distillation from a teacher."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and learning rate."""

    resume_from: str | None = None
    """Run folder, or RUN_DIR@STEP, of whose newest or STEP's checkpoint this new run is a branch: it starts with the
    weights, the optimizer's state and the counts of steps and tokens. The architecture must be the same; whatever else
    differs holds from there on."""

    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Project, name and tags of the run in W&B."""

    allow_change: list[str] = field(default_factory=list)
    """Keys that may have other values than before when the run is continued, as in optimizer.learning_rate,mlm.weight:
    those of optimizer, mlm.weight, distillation.weight and the adversary's max_lambda, ramp, warmup and learning_rate.
    metrics.jsonl has a line with the step and the values."""

    change_reason: str | None = None
    """Why they change, for that line."""

    profile: str | None = None
    """Steps to trace on rank 0, as in 200:210, into ``run_dir/profile``."""

    def __post_init__(self) -> None:
        if fixed := [key for key in self.allow_change if key not in CHANGEABLE_KEYS]:
            raise ValueError(
                f"allow_change: {fixed[0]} cannot change during a run; keys that can are "
                f"{', '.join(CHANGEABLE_KEYS)}; for others, start a branch (--run_dir NEW --resume_from {self.run_dir})"
            )
        self.profiled_steps()
        self.stream.raise_if_batches_do_not_fit(self.training.timeline())
        if self.training.compile and self.model.attention == "flex":
            raise ValueError(
                "training.compile: cannot be combined with model.attention flex, which torch compiles by itself; set "
                "model.attention to auto, or this to false"
            )
        if self.training.activation_checkpointing == "selective" and self.model.attention == "flex":
            raise ValueError(
                "training.activation_checkpointing: selective cannot be combined with model.attention flex, whose "
                "output torch cannot keep apart; set model.attention to auto, or this to 1"
            )
        if not ever_positive(self.stream.masking_rate):
            self._raise_if_masks_are_needed()
        if self.training.keeps_best_by_loss and not self.predicts_tokens:
            raise ValueError(
                "training.keep_best: judges by the held-out MLM loss, but no loss trains predictions; set "
                "training.best_by to retrieval_raw, with a folder in training.retrieval, or this to false"
            )
        source, distillation = self.model.initialize_from, self.distillation
        teacher = source if distillation is None else distillation.teacher
        if self.model.initialize_fit and source != teacher and not self.learns_from_corpus:
            raise ValueError(
                f"model.initialize_fit: fits the layers of distillation.teacher, which is {teacher}, while "
                f"model.initialize_from is {source}; name the same model in both"
            )

    def profiled_steps(self) -> tuple[int, int] | None:
        """First and last step to trace. Raises ValueError for a malformed ``profile``."""
        if self.profile is None:
            return None
        first, _, last = self.profile.partition(":")
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise ValueError(f"profile: must be first and last step to trace, as in 200:210, got {self.profile!r}")
        return int(first), int(last)

    @property
    def predicts_tokens(self) -> bool:
        """Whether a loss ever trains the masked-LM head."""
        distillation = self.distillation
        return ever_positive(self.mlm.weight) or (distillation is not None and ever_positive(distillation.logits))

    @property
    def learns_from_corpus(self) -> bool:
        """Whether the teacher's vectors come from the corpus."""
        return self.distillation is not None and self.distillation.teacher is None

    def _raise_if_masks_are_needed(self) -> None:
        needing = {"mlm.weight": self.mlm.weight} | (
            {"distillation.logits": self.distillation.logits} if self.distillation is not None else {}
        )
        for key, weight in needing.items():
            if ever_positive(weight):
                raise ValueError(
                    f"stream.masking_rate: with 0 there is nothing to predict, but {key} is {weight}; set it to 0"
                )


CHANGEABLE_KEYS = (
    # The optimizer's state keeps the groups of parameters that it began with.
    *(f"optimizer.{one.name}" for one in fields(OptimizerConfig) if one.name not in ("name", "layers_learning_rate")),
    "mlm.weight",
    "distillation.weight",
    *(f"adversary.{name}" for name in ("max_lambda", "ramp", "warmup", "learning_rate")),
)
"""Keys that ``allow_change`` may name: they change neither the model nor past batches."""

FREE_KEYS = (
    "run_dir",
    "allow_change",
    "change_reason",
    "profile",
    "training.micro_batch_size",
    "training.ds_config",
    "training.compile",
    "training.activation_checkpointing",
    "training.log_every",
    "training.evaluate_every",
    "training.heldout_sequences",
    "training.retrieval",
    "training.retrieval_every_tokens",
    "training.retrieval_sentences",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.keep_every_tokens",
    "training.keep_best",
    "training.best_by",
    "training.ema_half_life",
    "training.collective_timeout_minutes",
    "training.max_bad_steps",
    "training.spikes",
    "training.restarts_without_progress",
    "training.monitors",
    "wandb",
    *(f"stream.{key}" for key in DELIVERY_KEYS),
)
"""Keys that may change when a run is continued, because they change neither its batches nor its objective."""


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return both values of each dotted key, except :data:`FREE_KEYS`, in which two configurations differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**old, **new}:
        dotted = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if dotted in FREE_KEYS or before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            found |= differences(before, after, f"{dotted}.")
        else:
            found[dotted] = (before, after)
    return found
