"""Benchmarks against peers on the same work.

`losses` measures the losses of `unibert_kernels`, `stream` data loaders, `corpus` the making of a
corpus, `checkpoints` how long training stalls for checkpoints, and `gpu` everything that needs a CUDA GPU.
"""
