"""Benchmarks, beside peers on the same work.

`losses` has those of `unibert_kernels`, `stream` loaders, `checkpoints` how long a run waits for its own, `gpu`
everything that wants a CUDA GPU.
"""
