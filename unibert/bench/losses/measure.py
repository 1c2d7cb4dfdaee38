"""Time, memory and error of every provider on one case, in this process.

On CUDA providers run one after the other: `triton.testing.do_bench` times the forward pass (with gradients enabled, as
in training) and both passes together, with median, 20 % and 80 % quantiles. The time of the backward pass is the
difference of the medians, since several peers cannot run it twice. The speed of a CPU drifts, so there providers take
turns in rounds, and every round times both passes.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from unibert.bench.availability import NotAvailableError
from unibert.bench.losses.accuracy import Reference, compute_reference, measure_errors
from unibert.bench.losses.case import Case
from unibert.bench.losses.inputs import Inputs, make_inputs
from unibert.bench.losses.memory import measured_peak
from unibert.bench.losses.provider import LossFunction, Provider

DO_BENCH = {"warmup": 50, "rep": 300}
"""Options of do_bench, in milliseconds."""
TUNING_RUNS = {"cpu": 1, "cuda": 3}
"""Runs for each option of a peer, after a warm-up."""

Row = dict[str, Any]


class DeviceLostError(Exception):
    """The CUDA context is broken, and nothing more can be measured in this process."""


@dataclass
class _Entry:
    """A provider that runs."""

    row: Row
    function: LossFunction
    forward_ms: list[float] = field(default_factory=list)
    both_ms: list[float] = field(default_factory=list)


def measure_case(
    case: Case,
    providers: Sequence[Provider],
    *,
    device: str,
    error_rows: int,
    repeats: int = 3,
    seconds: float = float("inf"),
    on_start: Callable[[str], None] = lambda name: None,
) -> Iterator[Row]:
    """Yield one row for each provider, as soon as it is known; ``on_start`` receives a name before that provider runs.

    A provider that cannot run, fails or runs out of memory yields a row with the reason. When ``seconds`` are over, the
    other providers do not run.

    Raises:
        DeviceLostError: after the row of the provider that broke the CUDA context.
    """
    end = time.monotonic() + seconds
    inputs = make_inputs(case, device)
    error_inputs = inputs if error_rows >= case.rows else inputs.first_rows(error_rows)
    expected = compute_reference(error_inputs)
    on_cuda = torch.device(device).type == "cuda"
    entries = []
    for provider in providers:
        on_start(provider.name)
        row: Row = {"provider": provider.name, "side": provider.side, "setting": provider.setting}
        if time.monotonic() > end:
            yield row | {"status": "not run", "why": "the time given was used up"}
            continue
        try:
            entry = _prepare(provider, inputs, error_inputs, expected, row)
            if on_cuda:
                _time_on_cuda(entry, inputs)
        except Exception as error:  # any error of a peer's library is recorded in its row
            yield row | _failure(error, provider)
            _release(inputs)
            _raise_if_device_lost(device)
            continue
        if on_cuda:
            yield entry.row
            del entry
            _release(inputs)
        else:
            entries.append(entry)
    if entries:
        yield from _time_in_rounds(entries, inputs, repeats, end)


def _prepare(provider: Provider, inputs: Inputs, error_inputs: Inputs, expected: Reference, row: Row) -> _Entry:
    """Warm up, choose the fastest candidate and measure its errors."""
    option, function = _fastest(provider.candidates(inputs), inputs)
    # If all rows are compared, the function is reused, and with it the code that was compiled for them.
    compared = function if error_inputs is inputs else _same_option(provider.candidates(error_inputs), option)
    errors = measure_errors(compared, error_inputs, expected)
    row |= {
        "status": "ran",
        "option": option,
        "reference_loss": expected.loss,
        "error_rows": len(error_inputs.hidden),
        "loss_error": errors.loss,
        "hidden_gradient_error": errors.hidden,
        "weight_gradient_error": errors.weight,
        "accurate": errors.within(inputs.hidden.dtype),
    }
    return _Entry(row, function)


def _same_option(candidates: dict[str, LossFunction], option: str) -> LossFunction:
    """The candidate for fewer rows; if the option depends on their number and is missing, the last is the closest."""
    return candidates.get(option, list(candidates.values())[-1])


def _fastest(candidates: dict[str, LossFunction], inputs: Inputs) -> tuple[str, LossFunction]:
    """The fastest option and its function; options that run out of memory are skipped, unless all do."""
    times: dict[str, float] = {}
    runs = TUNING_RUNS[inputs.hidden.device.type]
    for option, function in candidates.items():
        try:
            _both_passes(function, inputs)
            if len(candidates) > 1:
                times[option] = min(sum(_both_passes(function, inputs)) for _ in range(runs))
            else:
                times[option] = 0.0
        except torch.cuda.OutOfMemoryError:
            if len(times) == 0 and option == list(candidates)[-1]:
                raise
            _release(inputs)
    best = min(times, key=lambda option: times[option])
    return best, candidates[best]


def _both_passes(function: LossFunction, inputs: Inputs) -> tuple[float, float]:
    """Milliseconds of one forward and one backward pass."""
    _clear_gradients(inputs)
    _synchronize(inputs)
    start = time.perf_counter()
    loss = function()
    _synchronize(inputs)
    middle = time.perf_counter()
    loss.backward()
    _synchronize(inputs)
    return 1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)


def _time_on_cuda(entry: _Entry, inputs: Inputs) -> None:
    from triton.testing import do_bench

    leaves = list(inputs.leaves.values())
    function = entry.function

    def both() -> None:
        function().backward()

    _clear_gradients(inputs)
    options = {"quantiles": [0.5, 0.2, 0.8], "grad_to_none": leaves, **DO_BENCH}
    forward, forward_p20, forward_p80 = do_bench(function, **options)
    both_ms, both_p20, both_p80 = do_bench(both, **options)
    _clear_gradients(inputs)
    entry.row |= {
        "forward_ms": forward,
        "forward_ms_p20": forward_p20,
        "forward_ms_p80": forward_p80,
        "both_ms": both_ms,
        "both_ms_p20": both_p20,
        "both_ms_p80": both_p80,
        "backward_ms": both_ms - forward,
    }
    entry.row |= measured_peak(both, inputs)


def _time_in_rounds(entries: list[_Entry], inputs: Inputs, repeats: int, end: float) -> Iterator[Row]:
    for number in range(repeats):
        if number and time.monotonic() > end:
            break
        for entry in entries:
            forward, backward = _both_passes(entry.function, inputs)
            entry.forward_ms.append(forward)
            entry.both_ms.append(forward + backward)
            _clear_gradients(inputs)
    for entry in entries:
        forward, both = statistics.median(entry.forward_ms), statistics.median(entry.both_ms)
        yield entry.row | {
            "forward_ms": forward,
            "forward_ms_min": min(entry.forward_ms),
            "both_ms": both,
            "both_ms_min": min(entry.both_ms),
            "backward_ms": both - forward,
            "repeats": len(entry.both_ms),
        }


def _failure(error: Exception, provider: Provider) -> Row:
    reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return {"status": "out of memory", "why": reason}
    # UniBERT raises ValueError for a path that the device cannot run.
    unavailable = isinstance(error, NotAvailableError | ImportError) or (
        provider.side == "ours" and isinstance(error, ValueError)
    )
    return {"status": "not run" if unavailable else "failed", "why": reason}


def _raise_if_device_lost(device: str) -> None:
    try:
        torch.ones(1, device=device).sum().item()
    except RuntimeError as error:
        raise DeviceLostError(str(error)) from error


def _release(inputs: Inputs) -> None:
    _clear_gradients(inputs)
    # Compiled code and CUDA graphs keep memory that the next provider may need.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    if inputs.hidden.is_cuda:
        torch.cuda.empty_cache()


def _clear_gradients(inputs: Inputs) -> None:
    for leaf in inputs.leaves.values():
        leaf.grad = None


def _synchronize(inputs: Inputs) -> None:
    if inputs.hidden.is_cuda:
        torch.cuda.synchronize()
