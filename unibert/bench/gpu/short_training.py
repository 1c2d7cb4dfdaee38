"""Short trainings of UniBERT's module with given kernel paths: ``python -m unibert.bench.gpu.short_training OUTPUT``.

Not the trainer, which wants DeepSpeed and a corpus: AdamW in plain torch under bf16 autocast, on a synthetic language
per document in which every second token follows from the one before, so that there is something to learn. Paths start
from the same weights and see the same batches; their loss curves differ by rounding alone.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unibert.model import unibert as module
from unibert.model.config import AdversaryConfig, DistillationConfig, MLMConfig, ModelConfig
from unibert.model.encoder import build_masked_lm
from unibert.stream.batch import Batch

NOT_MASKED = -100
MASK_ID = 4
FIRST_ID = 5
NUM_LANGUAGES = 16
MASKED = 0.15
DISTINCT_BATCHES = 64
WARMUP_STEPS = 5

PATHS: dict[str, dict[str, Any]] = {
    "chunked": {"mlm": "chunked", "adversary": "chunked"},
    "recompute": {"mlm": "recompute", "adversary": "fused"},
    "exp-store": {"mlm": "exp-store", "adversary": "fused"},
    "distillation, chunked": {"distillation": "chunked", "adversary": "chunked"},
    "distillation, recompute": {"distillation": "recompute", "adversary": "fused"},
    "distillation, store-teacher": {"distillation": "store-teacher", "adversary": "fused"},
}
"""Which path each objective takes; the first of either kind is the one that the others are compared with."""


@dataclass(kw_only=True)
class TrainingSize:
    """Model and batch; the defaults are a compact model with a large vocabulary, on a GPU."""

    vocab: int = 120_000
    hidden: int = 384
    layers: int = 6
    batch: int = 64
    sequence: int = 512
    steps: int = 120


REHEARSED = TrainingSize(vocab=200, hidden=32, layers=1, batch=2, sequence=64, steps=3)
"""For a CPU with the interpreter."""


def train(name: str, size: TrainingSize, device: str, seconds: float = float("inf")) -> dict[str, Any]:
    """Train with the paths that ``name`` stands for in `PATHS`, until the steps or the seconds are used up.

    Returns:
        "losses" a step (nats: MLM, adversary and KL as they enter the total), "tokens_per_second" of the median step,
        "peak_bytes" on CUDA, "size".
    """
    torch.manual_seed(0)
    paths = PATHS[name]
    distilled = "distillation" in paths
    student: Any = build_masked_lm(_model_config(size.hidden, size.layers), size.vocab, size.sequence)
    teacher: Any = None
    if distilled:
        teacher = build_masked_lm(_model_config(2 * size.hidden, size.layers), size.vocab, size.sequence)
        teacher.to(device, torch.bfloat16 if device != "cpu" else torch.float32).eval().requires_grad_(False)
    model = module.UniBERT(
        student,
        NUM_LANGUAGES,
        mlm=MLMConfig(path=paths.get("mlm", "auto")),
        adversary=AdversaryConfig(path=paths["adversary"]),
        teacher=teacher,
        distillation=DistillationConfig(teacher="random", path=paths["distillation"]) if distilled else None,
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), weight_decay=0.01)
    batches = [_batch(number, size).to(device) for number in range(min(DISTINCT_BATCHES, size.steps))]
    autocast: Callable[[], AbstractContextManager[None]] = functools.partial(
        torch.autocast, device, torch.bfloat16, enabled=device != "cpu"
    )
    losses, times = [], []
    started = time.monotonic()
    for step in range(size.steps):
        if time.monotonic() - started > seconds:
            break
        begun = time.perf_counter()
        batch = batches[step % len(batches)]
        with autocast():
            total = model(batch, _weights(batch, device, distilled)).total
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # Reading the loss waits for the device, so the time is the step's.
        losses.append(total.item())
        times.append(time.perf_counter() - begun)
    return {
        "losses": losses,
        "tokens_per_second": size.batch * size.sequence / statistics.median(times[WARMUP_STEPS:] or times),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "size": asdict(size),
    }


def _model_config(hidden: int, layers: int) -> ModelConfig:
    return ModelConfig(
        config={
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": max(1, hidden // 64),
            "intermediate_size": 3 * hidden // 2,
        }
    )


def _weights(batch: Batch, device: str, distilled: bool) -> module.StepWeights:
    return module.StepWeights(
        replicas=1,
        masked_tokens=float(len(batch.masked_positions)),
        tokens=float(batch.input_ids.numel()),
        adversary_weight=float(len(batch.document_languages)),
        distillation=1.0 if distilled else 0.0,
        reversal_lambda=torch.tensor(0.02, device=device),
    )


def _batch(number: int, size: TrainingSize) -> Batch:
    """Four documents a row, each in a language of its own whose tokens follow one another by a fixed rule."""
    generator = torch.Generator().manual_seed(number)
    shape, length = (size.batch, size.sequence), size.sequence // 4
    content = size.vocab - FIRST_ID
    prior = 1 / (torch.arange(content) + 2.7)
    ids = torch.multinomial(prior, size.batch * size.sequence, replacement=True, generator=generator).view(shape)
    documents = torch.arange(4 * size.batch).view(-1, 1).expand(-1, length).reshape(shape)
    languages = torch.randint(NUM_LANGUAGES, (4 * size.batch,), generator=generator)
    shifts = languages[documents]
    ids[:, 1::2] = (ids[:, 0::2] + 1 + shifts[:, 0::2]) % content
    ids += FIRST_ID
    masked = torch.rand(shape, generator=generator) < MASKED
    return Batch(
        input_ids=ids.masked_fill(masked, MASK_ID),
        labels=ids.masked_fill(~masked, NOT_MASKED),
        position_ids=torch.arange(length).repeat(4).expand(shape).contiguous(),
        document_ids=documents,
        document_languages=languages,
        cu_seqlens=torch.arange(4 * size.batch + 1, dtype=torch.int32) * length,
        max_seqlen=length,
        masked_positions=masked.flatten().nonzero()[:, 0],
        sequence_indices=torch.arange(size.batch) + number * size.batch,
        origins=[],
    )


def main() -> None:
    """Train with entries of `PATHS`; OUTPUT gets a line {"started": name}, then {"name": …, "result": …} for each."""
    parser = argparse.ArgumentParser(prog="python -m unibert.bench.gpu.short_training")
    parser.add_argument("output", type=Path)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all of them")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    size = TrainingSize() if options.device == "cuda" else REHEARSED
    end = time.monotonic() + options.seconds
    with options.output.open("a", encoding="utf-8") as stream:

        def write(record: dict[str, Any]) -> None:
            stream.write(json.dumps(record) + "\n")
            stream.flush()

        for number, name in enumerate(options.paths):
            write({"started": name})
            if number:
                # One path's peak is not another's.
                gc.collect()
                if options.device == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
            share = (end - time.monotonic()) / (len(options.paths) - number)
            # Start and compilation come out of a path's share too.
            try:
                result = train(name, size, options.device, share / 2)
            except Exception as error:  # whatever goes wrong is this path's result
                result = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            write({"name": name, "result": result})
            print(f"{name}: {speed_of(result)}", flush=True)


def speed_of(result: dict[str, Any]) -> str:
    """A line on one training."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    first, last = result["losses"][0], result["losses"][-1]
    return (
        f"{result['tokens_per_second']:,.0f} tokens/s, loss {first:.3f} to {last:.3f} in {len(result['losses'])} steps"
    )


if __name__ == "__main__":
    main()
