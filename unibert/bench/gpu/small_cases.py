"""One small case of every path of ours, forward and back once: ``python -m unibert.bench.gpu.small_cases``.

For tools that slow kernels down a hundredfold, such as compute-sanitizer. Sizes are multiples of no tile, so that every
mask has something to hide.
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
DONE = "done: "


def run_small_cases(device: str) -> None:
    """Run them all, bf16 on CUDA and fp32 on a CPU, with a line for each that is done."""
    for case in CASES:
        case = replace(case, dtype="bfloat16" if device == "cuda" else "float32")
        inputs = make_inputs(case, device)
        for provider in providers_of(case.loss):
            # The chunked paths have no kernels of ours.
            if provider.side != "ours" or provider.name.endswith("chunked"):
                continue
            (function,) = provider.candidates(inputs).values()
            function().backward()
            if device == "cuda":
                torch.cuda.synchronize()
            print(f"{DONE}{case.loss}, {provider.name}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m unibert.bench.gpu.small_cases")
    parser.add_argument("--device", default="cuda")
    run_small_cases(parser.parse_args().device)


if __name__ == "__main__":
    main()
