"""Compile in advance what a benchmark will run: ``python -m unibert.bench.losses.warmup --preset NAME``.

Triton and inductor cache compiled code on disk, where the benchmark's processes find it. Compilation does not need the
GPU, so it can run beside work that measures no times, and saves GPU time for work that does.
"""

from __future__ import annotations

import argparse
import gc
import time

import torch

from unibert.bench.losses.config import KernelBenchConfig
from unibert.bench.losses.inputs import make_inputs
from unibert.bench.losses.providers import providers_of

COMPILED_PROVIDERS = ("UniBERT", "torch.compile", "Liger", "cce")


def warmup(preset: str, device: str) -> None:
    """Run one forward and backward pass of the preset's providers whose code is compiled."""
    config = KernelBenchConfig(preset=preset, device=device)  # type: ignore[arg-type]
    for case in config.cases():
        inputs = make_inputs(case, device)
        words = config.providers_for(case) or [""]
        for provider in providers_of(case.loss):
            name = provider.name
            if not name.startswith(COMPILED_PROVIDERS) or not any(word in name for word in words):
                continue
            begun = time.monotonic()
            try:
                # All options of a peer share compiled code.
                list(provider.candidates(inputs).values())[-1]().backward()
            except Exception as error:  # the benchmark will report it too
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
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m unibert.bench.losses.warmup")
    parser.add_argument("--preset", default="headline")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    warmup(options.preset, options.device)


if __name__ == "__main__":
    main()
