"""Other trainers: transformers' Trainer, plain PyTorch, DeepSpeed's engine with an eager head.

They read the sequences that UniBERT packs, as rows of ids, and mask them with transformers' collator. As is usual,
their attention does not tell the documents of a sequence apart, which saves them a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

from unibert.bench.availability import NotAvailableError, require_package
from unibert.bench.training.provider import Place, TrainProvider
from unibert.bench.training.stopwatch import Stopwatch
from unibert.bench.training.work import LEARNING_RATE, MAX_NORM, TrainWork
from unibert.cpu_products import use_fastest_products
from unibert.training.engine import ds_config_path, read_ds_config
from unibert.training.freed_memory import keep_freed_memory
from unibert.training.ranks.collectives import join


def _collator(work: TrainWork) -> DataCollatorForLanguageModeling:
    return DataCollatorForLanguageModeling(work.tokenizer(), mlm_probability=work.masking_rate)


def _batches(work: TrainWork, place: Place) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Yield the inputs of each step and their number of tokens."""
    collate, rows = _collator(work), work.rows(place.rank)
    for first in range(0, len(rows), work.batch_size):
        chosen = rows[first : first + work.batch_size]
        batch = collate([{"input_ids": row} for row in chosen])
        yield {name: tensor.to(place.device) for name, tensor in batch.items()}, sum(map(len, chosen))


def train_with_transformers(
    work: TrainWork, place: Place, stopwatch: Stopwatch, *, sparse: bool, as_unibert: bool = False
) -> None:
    """Train with transformers' Trainer.

    Args:
        work, place, stopwatch: as for every provider.
        sparse: whether the model computes the logits of masked positions only.
        as_unibert: whether its process is set up as UniBERT's: products and memory, of which it knows nothing.

    Raises:
        NotAvailableError: if accelerate is missing, which Trainer needs, or there is nothing to set up on a GPU.
    """
    require_package("accelerate")
    if as_unibert:
        if place.device.type != "cpu":
            raise NotAvailableError("a GPU's process needs no such settings")
        use_fastest_products(place.device)
        keep_freed_memory(place.device)
    if work.ranks > 1:
        join()
    model: Any = work.model()
    rows = work.rows(place.rank)
    model.config.sparse_prediction = model.sparse_prediction = sparse
    tokens = sum(map(len, rows)) // work.num_steps
    arguments = TrainingArguments(
        output_dir=str(Path(work.corpus).parent / "trainer"),
        per_device_train_batch_size=work.batch_size,
        max_steps=work.num_steps,
        learning_rate=LEARNING_RATE,
        max_grad_norm=MAX_NORM,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        bf16=place.device.type == "cuda",
        use_cpu=place.device.type == "cpu",
        seed=work.seed,
        disable_tqdm=True,
    )

    class EndSteps(TrainerCallback):
        def on_step_end(self, *others: Any, **values: Any) -> None:
            stopwatch.end_step(tokens)

    # Each rank has the rows of all, of which Trainer takes its share.
    data: Any = [{"input_ids": row} for row in rows] * work.ranks
    Trainer(
        model=model, args=arguments, train_dataset=data, data_collator=_collator(work), callbacks=[EndSteps()]
    ).train()


def train_plainly(work: TrainWork, place: Place, stopwatch: Stopwatch) -> None:
    """Train with a loop of plain PyTorch: all logits, fused AdamW, DistributedDataParallel on several ranks."""
    model: Any = work.model()
    model.to(place.device)
    if work.ranks > 1:
        join()
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    batches = _batches(work, place)
    for _ in range(work.num_steps):
        with stopwatch.measures("data"):
            batch, tokens = next(batches)
        with stopwatch.measures("forward"), place.autocast():
            loss = model(**batch).loss
        with stopwatch.measures("backward"):
            loss.backward()
        with stopwatch.measures("optimizer"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
        stopwatch.end_step(tokens)
    if work.ranks > 1:
        dist.destroy_process_group()


class _EagerHead(torch.nn.Module):
    """A masked language model whose head computes the logits of the masked positions at once."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        states = self.model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        masked = labels >= 0
        logits = self.model.decoder(self.model.head(states[masked]))
        return F.cross_entropy(logits.float(), labels[masked])


def train_with_deepspeed(work: TrainWork, place: Place, stopwatch: Stopwatch) -> None:
    """Train with DeepSpeed's engine, an eager head over the masked positions, and torch's AdamW."""
    join()
    import deepspeed

    model = _EagerHead(work.model())
    config = read_ds_config(ds_config_path(work.ds_config), place.device) | {
        "train_micro_batch_size_per_gpu": work.batch_size,
        "gradient_clipping": MAX_NORM,
        "steps_per_print": 10**9,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    batches = _batches(work, place)
    for _ in range(work.num_steps):
        with stopwatch.measures("data"):
            batch, tokens = next(batches)
        with stopwatch.measures("forward"):
            loss = engine(**batch)
        with stopwatch.measures("backward"):
            engine.backward(loss)
        with stopwatch.measures("optimizer"):
            engine.step()
        stopwatch.end_step(tokens)
    dist.destroy_process_group()


PEERS: tuple[TrainProvider, ...] = (
    TrainProvider("transformers Trainer", "peer", partial(train_with_transformers, sparse=False)),
    TrainProvider("transformers Trainer, sparse_prediction", "peer", partial(train_with_transformers, sparse=True)),
    TrainProvider(
        "transformers Trainer, sparse, set up as UniBERT",
        "peer",
        partial(train_with_transformers, sparse=True, as_unibert=True),
        keeps_memory=True,
    ),
    TrainProvider("plain PyTorch", "peer", train_plainly),
    TrainProvider("DeepSpeed, eager head", "peer", train_with_deepspeed),
)
