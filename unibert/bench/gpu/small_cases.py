"""One small case of every UniBERT path, forward and backward once: ``python -m unibert.bench.gpu.small_cases``.

It is meant for tools that slow kernels down a hundredfold, such as compute-sanitizer. Sizes are not multiples of any
tile, so that every mask is used.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from unibert.bench.losses.case import Case
from unibert.bench.losses.inputs import make_inputs
from unibert.bench.losses.providers import providers_of

HEAD = Case(rows=67, vocab=1031, hidden=96, bias=True)
CASES = (HEAD, replace(HEAD, loss="distillation"), replace(HEAD, loss="adversary", rows=333, bias=False))
DONE_PREFIX = "done: "


def run_small_cases(device: str) -> None:
    """Run all cases, in bf16 on CUDA and fp32 on a CPU, and print a line after each."""
    for case in CASES:
        case = replace(case, dtype="bfloat16" if device == "cuda" else "float32")
        inputs = make_inputs(case, device)
        for provider in providers_of(case.loss):
            # The chunked paths have no Triton kernels.
            if provider.side != "ours" or provider.name.endswith("chunked"):
                continue
            (function,) = provider.candidates(inputs).values()
            function().backward()
            if device == "cuda":
                torch.cuda.synchronize()
            print(f"{DONE_PREFIX}{case.loss}, {provider.name}", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m unibert.bench.gpu.small_cases")
    parser.add_argument("--device", default="cuda")
    run_small_cases(parser.parse_args().device)


if __name__ == "__main__":
    main()
