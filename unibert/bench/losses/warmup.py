"""Compile what a benchmark will run: ``python -m unibert.bench.losses.warmup --preset NAME``.

Triton and inductor keep what they compiled on disk, where the benchmark's processes find it. Compiling takes no GPU, so
this goes on beside work that takes no times, and leaves minutes with the GPU to those that do.
"""

from __future__ import annotations

import argparse
import gc
import time

import torch

from unibert.bench.losses.config import KernelBenchConfig
from unibert.bench.losses.inputs import make_inputs
from unibert.bench.losses.providers import providers_of

COMPILING = ("UniBERT", "torch.compile", "Liger", "cce")


def warmup(preset: str, device: str) -> None:
    """One forward and backward pass of everybody in the preset whose code is compiled, as the benchmark has them."""
    config = KernelBenchConfig(preset=preset, device=device)  # type: ignore[arg-type]
    for case in config.cases():
        inputs = make_inputs(case, device)
        words = config.providers_for(case) or [""]
        for provider in providers_of(case.loss):
            name = provider.name
            if not name.startswith(COMPILING) or not any(word in name for word in words):
                continue
            begun = time.monotonic()
            try:
                # Of a peer's options one compiles for all.
                list(provider.candidates(inputs).values())[-1]().backward()
            except Exception as error:  # the benchmark says it too
                print(f"{case}, {name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
            else:
                print(f"{case}, {name}: {time.monotonic() - begun:.1f} s", flush=True)
            for leaf in inputs.leaves.values():
                leaf.grad = None
            torch.compiler.reset()
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m unibert.bench.losses.warmup")
    parser.add_argument("--preset", default="headline")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    warmup(options.preset, options.device)


if __name__ == "__main__":
    main()
