"""Benchmarks, beside peers on the same work.

`losses` has those of `unibert_kernels`, `stream` loaders, `checkpoints` how long a run waits for its own. `gpu` is
everything that wants a CUDA GPU, in two stages, whose parts are in `gpu_tests`, `gpu_losses` and `gpu_trainings`.
"""
