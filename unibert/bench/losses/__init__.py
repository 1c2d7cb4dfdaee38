"""``bench kernels``: the losses of `unibert_kernels` beside their peers on the same work: time, memory, error.

`case` says what is measured, `inputs` makes it, `mlm_providers`, `distillation_providers` and `adversary_providers`
hold who takes part, `measure` times one case in a `worker` process, `run` is the command. `kernel_profile` and
`warmup` are commands of their own, for those who look closer or have little time.
"""
