"""Fine-tuning of an encoder with a new linear head, and prediction with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from unibert.errors import UserError
from unibert.evaluation.tasks.task import IGNORED, Row
from unibert.evaluation.tasks.used_embeddings import UsedEmbeddings, only_used_embeddings

DROPOUT = 0.1
"""Of the head's input."""
WARMUP = 0.1
"""Share of the steps over which the learning rate rises from 0."""
WEIGHT_DECAY = 0.01
"""Of matrices other than embeddings, not of norms and biases."""
MAX_GRAD_NORM = 1.0
_BATCHES_PER_BUCKET = 32
"""Rows of as many batches are sorted by length together."""
_PREDICTION_TOKENS = 16_384
"""Maximum number of tokens in a batch of predictions, padding included."""

Pooling = Literal["first", "mean"]


class FineTunedModel(nn.Module):
    """An encoder and a linear head on its last layer.

    Args:
        encoder: transformers' encoder without a head.
        num_outputs: number of outputs, for every token or for the row.
        pooling: what stands for a row: its first token or the mean of its tokens. None: every token for itself.
        pad_id: id of the padding token.
        has_type_ids: whether the encoder tells both texts of a pair apart by ids.
        device: where it shall be.
    """

    def __init__(
        self,
        encoder: Any,
        num_outputs: int,
        *,
        pooling: Pooling | None,
        pad_id: int,
        has_type_ids: bool,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(encoder.config.hidden_size, num_outputs)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.pad_id = pad_id
        self._pooling, self._has_type_ids = pooling, has_type_ids
        self._bfloat16 = bfloat16_is_fast(device)
        if self._bfloat16 and device.type == "cpu":
            # torch's fused attention for CPUs takes two to three times as long in the backward pass in bfloat16.
            encoder.set_attn_implementation("eager")
        self.to(device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def forward(self, rows: Sequence[Row], language_mean: Tensor | None = None) -> Tensor:
        """Return the outputs of rows.

        Args:
            rows: B rows, which are padded to the longest.
            language_mean: (H,) or (B, 1, H) float32, which is subtracted from all hidden states.

        Returns:
            (B, S, num_outputs) float32, or (B, num_outputs) with pooling.
        """
        lengths = torch.tensor([len(row.ids) for row in rows])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(self.device)
        inputs = {"input_ids": self._padded([row.ids for row in rows], self.pad_id), "attention_mask": mask.long()}
        if self._has_type_ids:
            inputs["token_type_ids"] = self._padded([row.type_ids for row in rows], 0)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
            states = self.encoder(**inputs).last_hidden_state
        states = states.float()
        if language_mean is not None:
            states = states - language_mean
        if self._pooling == "first":
            states = states[:, 0]
        elif self._pooling == "mean":
            weights = mask[:, :, None].float()
            states = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return self.head(self.dropout(states))

    def _padded(self, values: Sequence[Sequence[int]], padding: int) -> Tensor:
        tensors = [torch.tensor(one) for one in values]
        return pad_sequence(tensors, batch_first=True, padding_value=padding).to(self.device)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Return whether bfloat16 saves time: on a GPU, and on a CPU that multiplies such matrices (AMX, AVX-512 BF16)."""
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cuda" or any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned."""

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int


@dataclass(frozen=True)
class FineTuningLog:
    """What fine-tuning went through."""

    losses: list[float]
    """Mean training loss of each epoch."""
    dev_scores: list[float]
    """Score on the development set after each epoch."""
    best_epoch: int
    """The epoch with the best of these, from 1, whose weights are kept."""


def fine_tune(
    model: FineTunedModel,
    rows: Sequence[Row],
    dev_rows: Sequence[Row],
    recipe: Recipe,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    dev_score: Callable[[], float],
    language_mean: Callable[[Sequence[Row]], Tensor | None],
    name: str,
) -> FineTuningLog:
    """Train all weights with AdamW, the learning rate rising and falling linearly, and keep the best epoch's.

    Batches hold rows of similar length. They and the dropout follow from the recipe's seed.

    Args:
        model: it is changed in place.
        rows: the training data.
        dev_rows: the development set.
        recipe: epochs, rate, rows per batch and seed.
        loss: of outputs and targets, see `unibert.evaluation.tasks.task.Task.loss`.
        dev_score: score of the model on the development set, which chooses the epoch.
        language_mean: what is subtracted from the states of rows.
        name: shown beside the progress bar.

    Raises:
        UserError: if the loss becomes infinite or not a number.
    """
    ids = (one for row in (*rows, *dev_rows) for one in (model.pad_id, *row.ids))
    steps = recipe.epochs * -(-len(rows) // recipe.batch_size)
    generator = torch.Generator().manual_seed(recipe.seed)
    losses, dev_scores = [], []
    best: dict[str, Tensor] = {}
    devices = [model.device] if model.device.type == "cuda" else []
    with (
        only_used_embeddings(model.encoder, ids),
        torch.random.fork_rng(devices=devices),
        tqdm(total=steps, desc=f"{name}: fine-tuning", disable=None, leave=False) as progress,
    ):
        optimizer = _optimizer(model, recipe.learning_rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, steps))
        torch.manual_seed(recipe.seed)
        for _ in range(recipe.epochs):
            model.train()
            total = torch.zeros((), device=model.device)
            for batch in _training_batches(rows, recipe.batch_size, generator):
                value = loss(model(batch, language_mean(batch)), _targets(batch).to(model.device))
                optimizer.zero_grad()
                value.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
                optimizer.step()
                scheduler.step()
                total += value.detach() * len(batch)
                progress.update()
            losses.append(total.item() / len(rows))
            if not torch.isfinite(total):
                raise UserError(
                    f"{name}: the loss of fine-tuning is not finite; lower --fine_tuning.learning_rate (now "
                    f"{recipe.learning_rate:g})"
                )
            dev_scores.append(dev_score())
            if dev_scores[-1] == max(dev_scores):
                best = {key: value.detach().clone() for key, value in model.state_dict().items()}
        model.load_state_dict(best)
    last_best = len(dev_scores) - dev_scores[::-1].index(max(dev_scores))
    return FineTuningLog(losses, dev_scores, last_best)


@torch.inference_mode()
def outputs_of(
    model: FineTunedModel, rows: Sequence[Row], language_mean: Tensor | None, name: str
) -> Iterator[tuple[Row, Tensor]]:
    """Yield each row with its outputs without padding, on the CPU, the longest first."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    with tqdm(total=len(rows), desc=name, disable=None, leave=False) as progress:
        while order:
            # The last of them is the longest.
            longest = len(rows[order[-1]].ids)
            number = max(1, _PREDICTION_TOKENS // longest)
            order, taken = order[:-number], order[-number:]
            outputs = model([rows[index] for index in taken], language_mean).cpu()
            for index, output in zip(taken, outputs, strict=True):
                yield rows[index], output[: len(rows[index].ids)] if output.ndim > 1 else output
            progress.update(len(taken))


def _optimizer(model: FineTunedModel, learning_rate: float) -> torch.optim.AdamW:
    embeddings = {
        weight
        for module in model.modules()
        if isinstance(module, nn.Embedding | UsedEmbeddings)
        for weight in module.parameters()
    }
    decayed = [weight for weight in model.parameters() if weight.ndim > 1 and weight not in embeddings]
    others = [weight for weight in model.parameters() if weight.ndim <= 1 or weight in embeddings]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def _rate_factor(step: int, steps: int) -> float:
    warmup = max(1, int(WARMUP * steps))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def _training_batches(rows: Sequence[Row], batch_size: int, generator: torch.Generator) -> Iterator[list[Row]]:
    """Yield all rows in random order, in batches of similar length."""
    order = torch.randperm(len(rows), generator=generator).tolist()
    batches = []
    for first in range(0, len(order), batch_size * _BATCHES_PER_BUCKET):
        bucket = order[first : first + batch_size * _BATCHES_PER_BUCKET]
        bucket.sort(key=lambda index: len(rows[index].ids))
        batches += [bucket[start : start + batch_size] for start in range(0, len(bucket), batch_size)]
    for number in torch.randperm(len(batches), generator=generator).tolist():
        yield [rows[index] for index in batches[number]]


def _targets(batch: Sequence[Row]) -> Tensor:
    return pad_sequence([torch.tensor(row.targets) for row in batch], batch_first=True, padding_value=IGNORED)
