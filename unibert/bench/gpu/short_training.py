"""Short trainings of UniBERT's module with given kernel paths: ``python -m unibert.bench.gpu.short_training OUTPUT``.

They do not use the trainer, which needs DeepSpeed and a corpus, but AdamW in plain torch under bf16 autocast. The
documents are in synthetic languages in which every second token follows from the one before, so that there is something
to learn. All paths start from the same weights and use the same batches: their loss curves differ only by rounding.
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
from unibert.model.teacher import Teacher
from unibert.stream.batch import Batch, document_spans

NOT_MASKED = -100
MASK_ID = 4
FIRST_ID = 5
NUM_LANGUAGES = 16
MASKING_RATE = 0.15
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
"""Path of each objective. The first entry, with or without distillation, is the baseline of the others."""


@dataclass(kw_only=True)
class TrainingSize:
    """Sizes of model and batch; the defaults are a compact model with a large vocabulary, for a GPU."""

    vocab: int = 120_000
    hidden: int = 384
    layers: int = 6
    batch: int = 64
    sequence: int = 512
    steps: int = 120


REHEARSAL_SIZE = TrainingSize(vocab=200, hidden=32, layers=1, batch=2, sequence=64, steps=3)
"""Size for a CPU with the interpreter."""


def train(name: str, size: TrainingSize, device: str, seconds: float = float("inf")) -> dict[str, Any]:
    """Train with the paths of the entry ``name`` in `PATHS`, until all steps are done or the seconds are over.

    Returns:
        "losses", the total of each step (nats: MLM, adversary and KL with their weights), "tokens_per_second" of the
        median step, "peak_bytes" on CUDA, "size".
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
        teacher=Teacher(teacher) if distilled else None,
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
        # item() waits for the device, so that the time includes the whole step.
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
    documents = float(len(batch.document_languages))
    return module.StepWeights(
        replicas=1,
        masked_tokens=float(len(batch.masked_positions)),
        tokens=float(batch.input_ids.numel()),
        documents=documents,
        adversary_weight=documents,
        distillation=DistillationConfig(teacher="random").weights_at(0) if distilled else {},
        reversal_lambda=torch.tensor(0.02, device=device),
    )


def _batch(number: int, size: TrainingSize) -> Batch:
    """Four documents per sequence, each in one language, in which tokens follow one another by a fixed rule."""
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
    masked = torch.rand(shape, generator=generator) < MASKING_RATE
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
        document_spans=document_spans(documents.numpy()),
        origins=[],
    )


def main() -> None:
    """Train with entries of `PATHS`; write lines {"started": name} and {"name": …, "result": …} for each to OUTPUT."""
    parser = argparse.ArgumentParser(prog="python -m unibert.bench.gpu.short_training")
    parser.add_argument("output", type=Path)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time limit for all paths")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    size = TrainingSize() if options.device == "cuda" else REHEARSAL_SIZE
    end = time.monotonic() + options.seconds
    with options.output.open("a", encoding="utf-8") as stream:

        def write(record: dict[str, Any]) -> None:
            stream.write(json.dumps(record) + "\n")
            stream.flush()

        for number, name in enumerate(options.paths):
            write({"started": name})
            if number:
                # The peak of memory is measured for each path separately.
                gc.collect()
                if options.device == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
            share = (end - time.monotonic()) / (len(options.paths) - number)
            # The other half of the share is for start and compilation.
            try:
                result = train(name, size, options.device, share / 2)
            except Exception as error:  # any error is recorded as the path's result
                result = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            write({"name": name, "result": result})
            print(f"{name}: {format_training(result)}", flush=True)


def format_training(result: dict[str, Any]) -> str:
    """One line with the result of a training."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    first, last = result["losses"][0], result["losses"][-1]
    return (
        f"{result['tokens_per_second']:,.0f} tokens/s, loss {first:.3f} to {last:.3f} in {len(result['losses'])} steps"
    )


if __name__ == "__main__":
    main()
