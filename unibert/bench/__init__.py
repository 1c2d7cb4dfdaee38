"""The losses of `unibert_kernels` side by side with their peers: time, memory, error, on the same work.

`case` says what is measured, `inputs` makes it, `mlm_contestants`, `distillation_contestants` and
`adversary_contestants` hold who takes part, `measure` times one case in a worker process, `kernels` is the command,
`goals` the verdict. `gpu` is everything that wants a CUDA GPU, in two stages, whose parts are in `gpu_tests`,
`gpu_losses` and `gpu_trainings`.
"""
