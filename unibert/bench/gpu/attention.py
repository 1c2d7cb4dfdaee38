"""Time of the attention paths: ``python -m unibert.bench.gpu.attention PRESET SEQUENCE_LENGTH OUTPUT``.

An encoder of the preset's size runs forward and backward over packed sequences with as many tokens as a preset's
micro-batch; masks are rebuilt for every batch, as in training. Document lengths are log-normal with a median of 400
tokens and a sigma of 1, similar to articles in real dumps; longer documents are cut, and all are packed as in training.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unibert.bench.losses.measure import DO_BENCH
from unibert.configuration import read_yaml
from unibert.environment import describe_environment
from unibert.files import write_json
from unibert.model.attention import IMPLEMENTATIONS, PackedDocuments
from unibert.model.config import ModelConfig
from unibert.model.encoder import build_masked_lm, encode
from unibert.run_files import run_file
from unibert.stream.packing import Pieces, pack_shuffled

PRESETS = ("small", "base")
SEQUENCE_LENGTHS = (512, 2048)
MICRO_BATCH_TOKENS = 32 * 512
MEDIAN_LENGTH, SIGMA = 400.0, 1.0
VOCAB = 1000
"""Small, since the head does not run."""
CPU_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """An encoder and the shape of its micro-batch."""

    model: ModelConfig
    sequences: int
    sequence_length: int

    @classmethod
    def of_preset(
        cls, preset: str, sequence_length: int, tokens: int = MICRO_BATCH_TOKENS, layers: int | None = None
    ) -> AttentionCase:
        """The preset's encoder on a micro-batch of ``tokens`` tokens, at least one sequence."""
        model = ModelConfig(**read_yaml(run_file(preset))["model"])
        if layers is not None:
            model.config["num_hidden_layers"] = layers
        return cls(model=model, sequences=max(1, tokens // sequence_length), sequence_length=sequence_length)


def time_paths(case: AttentionCase, device: str) -> dict[str, Any]:
    """Time every path, in bf16 on CUDA and fp32 on a CPU.

    Returns:
        "sequences", "sequence_length", "documents", "padding_share" and "paths". The latter holds by name "forward_ms"
        (with gradients enabled), "both_ms", "tokens_per_second" (without padding) and on CUDA "peak_bytes"; or
        "failed".
    """
    document_ids, position_ids = packed_sequences(case.sequences, case.sequence_length)
    tokens = document_ids >= 0
    result: dict[str, Any] = {
        "sequences": case.sequences,
        "sequence_length": case.sequence_length,
        "documents": int(document_ids.max()) + 1,
        "padding_share": 1 - float(tokens.float().mean()),
        "paths": {},
    }
    for path in IMPLEMENTATIONS:
        try:
            timed = _time_path(case, path, device, document_ids, position_ids)
        except Exception as error:  # any error, out of memory included, is recorded as the path's result
            result["paths"][path] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        else:
            result["paths"][path] = timed | {"tokens_per_second": 1000 * int(tokens.sum()) / timed["both_ms"]}
        print(f"  {path}: {result['paths'][path]}", flush=True)
    return result


def packed_sequences(sequences: int, sequence_length: int) -> tuple[Tensor, Tensor]:
    """Document and position ids, each (sequences, sequence_length) int64, the same at every call."""
    generator = np.random.default_rng(0)
    # Packing yields the emptiest sequences last, so four times as many are packed and some of them drawn.
    number = math.ceil(4 * sequences * sequence_length / MEDIAN_LENGTH)
    lengths = np.maximum(1, generator.lognormal(math.log(MEDIAN_LENGTH), SIGMA, number)).astype(np.int64)
    documents = Pieces(np.arange(number), np.zeros(number, dtype=np.int64), lengths)
    packing = pack_shuffled(documents, sequence_length, 0, order_sequences=generator.permutation)
    packing = packing.sequences(0, sequences)
    document_ids = np.full((sequences, sequence_length), -1, dtype=np.int64)
    position_ids = np.zeros_like(document_ids)
    for sequence in range(sequences):
        first, last = packing.bounds[sequence], packing.bounds[sequence + 1]
        piece_lengths = packing.pieces.length[first:last]
        num_tokens = piece_lengths.sum()
        document_ids[sequence, :num_tokens] = np.repeat(np.arange(first, last), piece_lengths)
        position_ids[sequence, :num_tokens] = np.concatenate([np.arange(length) for length in piece_lengths])
    return torch.from_numpy(document_ids), torch.from_numpy(position_ids)


def _time_path(
    case: AttentionCase, path: str, device: str, document_ids: Tensor, position_ids: Tensor
) -> dict[str, Any]:
    torch.manual_seed(0)
    model: Any = build_masked_lm(case.model, VOCAB, case.sequence_length)
    model.to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    input_ids = torch.randint(5, VOCAB, document_ids.shape).to(device)
    position_ids = position_ids.to(device)
    bounds = PackedDocuments.from_ids(document_ids.to(device))
    upstream = torch.randn(*document_ids.shape, model.config.hidden_size).to(device, model.dtype)

    def forward() -> Tensor:
        documents = PackedDocuments(bounds.document_ids, bounds.cu_seqlens, bounds.max_seqlen)
        return encode(model, input_ids, position_ids, documents, hidden_states=False, attention=path)[-1]

    def both() -> None:
        forward().backward(upstream)

    both()
    timed: dict[str, Any] = {}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        both()
        timed["peak_bytes"] = torch.cuda.max_memory_allocated()
    leaves = list(model.parameters())
    return {"forward_ms": _median_ms(forward, leaves), "both_ms": _median_ms(both, leaves)} | timed


def _median_ms(function: Callable[[], object], leaves: list[Tensor]) -> float:
    if leaves[0].is_cuda:
        from triton.testing import do_bench

        return do_bench(function, quantiles=[0.5], grad_to_none=leaves, **DO_BENCH)
    times = []
    for _ in range(CPU_RUNS):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    """Time one preset at one sequence length and write the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m unibert.bench.gpu.attention")
    parser.add_argument("preset")
    parser.add_argument("sequence_length", type=int)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=MICRO_BATCH_TOKENS, help="tokens of the micro-batch")
    parser.add_argument("--layers", type=int, help="number of layers; default: the preset's")
    options = parser.parse_args()
    case = AttentionCase.of_preset(options.preset, options.sequence_length, options.tokens, options.layers)
    result = time_paths(case, options.device)
    write_json(options.output, {"environment": describe_environment(), **result})


if __name__ == "__main__":
    main()
