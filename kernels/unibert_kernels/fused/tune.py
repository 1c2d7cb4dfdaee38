"""Find the fastest tiles on this machine's GPU and write them to the table `configs.TABLE`.

`python -m unibert_kernels.fused.tune --vocab 120000 --hidden 384 --rows 9830` times each kernel over the vocabulary
with many tile sizes, within the whole loss that it serves: *store* by exp-store, *statistics* and *gradient* by
recompute, the others by store-teacher with a teacher twice as wide. Only bf16 is tuned; fp32 keeps its entries. All
processors compile the candidates first. ``--minutes`` bounds the timing, which begins with the entry in use, so that an
early stop never makes things worse. ``--output`` names another file.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch
import triton
from torch import Tensor

from unibert_kernels.distillation import distillation_loss
from unibert_kernels.fused import configs, head
from unibert_kernels.fused.configs import SHARED_BYTES, TABLE, TileConfig
from unibert_kernels.fused.launch import gpu_generation
from unibert_kernels.mlm_head import mlm_head_loss

KERNELS = ("statistics", "store", "gradient", "teacher", "divergence", "divergence_gradient")
COMPILE_ROWS = 256
"""Rows of the losses that only compile, with 16 times as many ids: the binaries do not depend on sizes."""
MIN_GAIN = 0.02
"""Minimum share of the time that a candidate must save: less is noise, and would change the table at every run."""


def candidates(kernel: str, generation: str) -> Iterator[TileConfig]:
    """Yield tiles whose accumulators and loads fit registers and shared memory of ``generation``. On sm_90, which has a
    bulk copy engine, they are loaded by descriptors."""
    sizes = itertools.product((128, 64, 256), (256, 128, 64), (64, 32, 128), (8, 4), (3, 4, 2))
    descriptors = generation == "sm_90"
    for rows, columns, depth, num_warps, num_stages in sizes:
        accumulators = rows * columns / (32 * num_warps)
        if kernel.startswith("divergence"):
            # A tile of the teacher's logits takes as many registers.
            accumulators *= 2
        fits = 2 * (rows + columns) * depth * num_stages <= SHARED_BYTES[generation]
        if 32 <= accumulators <= 128 and fits:
            yield TileConfig(
                rows=rows,
                columns=columns,
                depth=depth,
                num_warps=num_warps,
                num_stages=num_stages,
                descriptors=descriptors,
                reason="",
            )


def tune(
    vocab_size: int, hidden_size: int, num_rows: int, device: torch.device, minutes: float
) -> dict[str, TileConfig]:
    """Find the fastest entry for each kernel, in bf16 on CUDA and fp32 elsewhere; its reason holds the figures."""
    generation = gpu_generation(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    best = {}
    if device.type == "cuda":
        _compile_ahead(generation, hidden_size)
    for kernel in KERNELS:
        run = _loss_of(kernel, vocab_size, hidden_size, num_rows, device, dtype)
        in_use = configs.tile_config(kernel, dtype, generation)
        end = time.monotonic() + 60 * minutes / len(KERNELS)
        times: dict[TileConfig, float] = {}
        for entry in itertools.chain([in_use], candidates(kernel, generation)):
            if times and time.monotonic() > end:
                break
            with _patched_config(kernel, entry):
                milliseconds = _time(run, device)
            if milliseconds is None:
                continue
            times[entry] = milliseconds
            print(f"{kernel} {_shape(entry)}: {milliseconds:.3f} ms", flush=True)
        fastest = min(times, key=lambda entry: times[entry])
        if in_use in times and times[fastest] > (1 - MIN_GAIN) * times[in_use]:
            fastest = in_use
        device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the interpreter"
        reason = (
            f"{times[fastest]:.3f} ms, the best of {len(times)} on {device_name}, V = {vocab_size}, H = {hidden_size}, "
            f"N = {num_rows}"
        )
        best[kernel] = replace(fastest, reason=reason)
        print(f"{kernel}: {_shape(fastest)}, {best[kernel].reason}", flush=True)
    return best


def _compile_ahead(generation: str, hidden_size: int) -> None:
    """Compile every candidate into Triton's cache."""
    jobs = [(kernel, entry, hidden_size) for kernel in KERNELS for entry in candidates(kernel, generation)]
    begun = time.monotonic()
    # A CUDA context inherited by a fork would not work in the child.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, jobs, chunksize=4))
    print(f"{len(jobs)} candidates compiled in {time.monotonic() - begun:.0f} s", flush=True)


def _compile(job: tuple[str, TileConfig, int]) -> None:
    kernel, entry, hidden_size = job
    run = _loss_of(kernel, 16 * COMPILE_ROWS, hidden_size, COMPILE_ROWS, torch.device("cuda"), torch.bfloat16)
    # A candidate that does not compile here fails again when it is timed, and is skipped there.
    with _patched_config(kernel, entry), suppress(triton.runtime.errors.OutOfResources, triton.CompilationError):
        run()


def write_table(path: Path, generation: str, best: dict[str, TileConfig]) -> None:
    """Write `TABLE` to ``path`` with the half-precision entries of ``generation`` replaced by ``best``."""
    entries = {f"{section}.{kernel}.{width}": entry for (section, kernel, width), entry in configs.read_table().items()}
    entries |= {f"{generation}.{kernel}.half": entry for kernel, entry in best.items()}
    header = TABLE.read_text(encoding="utf-8").split("\n[", 1)[0].rstrip("\n")
    blocks = [header]
    for name, entry in entries.items():
        lines = [f"{key} = {_toml(value)}" for key, value in asdict(entry).items()]
        blocks.append("\n".join([f"[{name}]", *lines]))
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _toml(value: int | bool | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _loss_of(
    kernel: str, vocab_size: int, hidden_size: int, num_rows: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(device, dtype).requires_grad_()

    hidden, weight = leaf(num_rows, hidden_size), leaf(vocab_size, hidden_size, scale=hidden_size**-0.5)
    labels = torch.randint(vocab_size, (num_rows,), generator=generator).to(device)
    if kernel in ("teacher", "divergence", "divergence_gradient"):
        teacher = leaf(num_rows, 2 * hidden_size), leaf(vocab_size, 2 * hidden_size, scale=(2 * hidden_size) ** -0.5)

        def loss() -> None:
            distillation_loss(hidden, weight, *teacher, labels, ce_weight=1.0, path="store-teacher").loss.backward()
    else:
        path = "exp-store" if kernel == "store" else "recompute"

        def loss() -> None:
            mlm_head_loss(hidden, weight, labels, path=path).loss.backward()

    def run() -> None:
        hidden.grad = weight.grad = None
        loss()

    return run


@contextmanager
def _patched_config(tuned: str, entry: TileConfig) -> Iterator[None]:
    """Let the losses use ``entry`` for the kernel ``tuned``."""
    real = head.tile_config
    head.tile_config = lambda kernel, dtype, generation: entry if kernel == tuned else real(kernel, dtype, generation)
    try:
        yield
    finally:
        head.tile_config = real


def _time(run: Callable[[], None], device: torch.device) -> float | None:
    """Median milliseconds, or None if the tile does not fit the GPU after all."""
    try:
        if device.type == "cuda":
            return float(triton.testing.do_bench(run, warmup=20, rep=100, return_mode="median"))
        begun = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - begun)
    except (triton.runtime.errors.OutOfResources, triton.CompilationError):
        return None


def _shape(entry: TileConfig) -> str:
    loads = "descriptors" if entry.descriptors else "pointers"
    return (
        f"{entry.rows} x {entry.columns} x {entry.depth}, {entry.num_warps} warps, {entry.num_stages} stages, {loads}"
    )


def main(arguments: list[str]) -> int:
    """Run the command line.

    Returns:
        the exit status.
    """
    parser = argparse.ArgumentParser(prog="unibert_kernels.fused.tune", description=__doc__.split("\n")[0])
    parser.add_argument("--vocab", type=int, default=120_000)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--rows", type=int, default=9_830)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("unibert_kernels.fused.tune: needs a CUDA GPU, but torch finds none", file=sys.stderr)
        return 1
    device = torch.device("cuda")
    best = tune(options.vocab, options.hidden, options.rows, device, options.minutes)
    write_table(options.output, gpu_generation(device), best)
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
