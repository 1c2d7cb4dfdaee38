"""The numbers that a run logs in its ``metrics.jsonl``."""

from __future__ import annotations

import resource
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unibert.training.ranks.collectives import gather_objects, sum_over_ranks


class Sums:
    """Sums of the objectives over micro-batches and ranks. All ranks must add the same keys with the same shapes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            value = value.double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def over_ranks(self) -> dict[str, Tensor]:
        """The totals over all ranks by one all-reduce, in float64, on the CPU."""
        names = sorted(self._sums)
        flat = sum_over_ranks(torch.cat([self._sums[name].flatten() for name in names])).cpu()
        pieces = flat.split([self._sums[name].numel() for name in names])
        return {name: piece.view(self._sums[name].shape) for name, piece in zip(names, pieces, strict=True)}


def prediction_metrics(totals: dict[str, Tensor], languages: list[str]) -> dict[str, Any]:
    """MLM loss (nats per masked token) and accuracy, over all languages and by language; empty if none is masked."""
    masked = float(totals["masked"])
    if not masked:
        return {}
    return {
        "mlm_loss": nine_digits(float(totals["mlm"]) / masked),
        "mlm_accuracy": nine_digits(float(totals["masked_correct"]) / masked),
        "mlm_loss_by_language": _means_by_language(totals, languages, column=0),
    }


def heldout_metrics(totals: dict[str, Tensor], heldout_tokens: dict[str, int]) -> dict[str, Any]:
    """MLM loss and accuracy on held-out text, each language weighted by its held-out tokens, measured or not.

    The loss thus describes the corpus and compares with the corpus's unigram entropy.
    """
    losses = _means_by_language(totals, list(heldout_tokens), column=0)
    hits = _means_by_language(totals, list(heldout_tokens), column=2)
    weight = sum(heldout_tokens[code] for code in losses)
    return {
        "heldout_mlm_loss": nine_digits(sum(heldout_tokens[code] * loss for code, loss in losses.items()) / weight),
        "heldout_mlm_accuracy": nine_digits(sum(heldout_tokens[code] * hit for code, hit in hits.items()) / weight),
        "heldout_mlm_loss_by_language": losses,
    }


def _means_by_language(totals: dict[str, Tensor], languages: list[str], column: int) -> dict[str, float]:
    by_language = zip(languages, totals["mlm_by_language"], strict=True)
    return {code: nine_digits(float(sums[column] / sums[1])) for code, sums in by_language if sums[1] > 0}


def objective_metrics(totals: dict[str, Tensor]) -> dict[str, float]:
    """Losses of the adversary and the distillation and the discriminator's accuracy, of those that are enabled."""
    metrics: dict[str, float] = {}
    if "adversary" in totals:
        metrics["adversary_loss"] = nine_digits(float(totals["adversary"] / totals["adversary_weight"]))
        metrics["adversary_accuracy"] = nine_digits(float(totals["classified_correct"] / totals["classified"]))
    counts = {"logits": "masked", "relations": "tokens", "hidden": "tokens", "pooled": "documents"}
    for kind, count in counts.items():
        # A step may have no piece that the corpus's teacher has read.
        if kind in totals and totals[count]:
            metrics[f"distillation_{kind}_loss"] = nine_digits(float(totals[kind] / totals[count]))
    return metrics


def nine_digits(value: float) -> float:
    """``value`` to nine significant digits, which identify every float32 value and stay short."""
    return float(f"{value:.9g}")


def slowest_rank(forward_seconds: float) -> dict[str, Any]:
    """The rank whose forward passes, in which no rank waits for another below ZeRO 3, take longest. All ranks must
    call this."""
    ranks = gather_objects((forward_seconds, socket.gethostname()))
    rank = max(range(len(ranks)), key=lambda one: ranks[one][0])
    seconds, host = ranks[rank]
    median = statistics.median(one for one, _ in ranks)
    return {"rank": rank, "host": host, "times_median": round(seconds / max(median, 1e-9), 3)}


class Throughput:
    """Tokens per second of training between two log lines, without the measurements in between.

    Args:
        tokens: number of tokens that the run has already consumed.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._time = time.perf_counter()

    def since_last(self, tokens: int) -> float:
        now = time.perf_counter()
        rate = (tokens - self._tokens) / (now - self._time)
        self._tokens, self._time = tokens, now
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block."""
        started = time.perf_counter()
        yield
        self._time += time.perf_counter() - started


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this process in GiB: on its GPU, or resident if there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
