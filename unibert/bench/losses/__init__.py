"""``bench kernels``: time, memory and error of the losses of `unibert_kernels` and their peers on the same work.

`case` describes what is measured, `inputs` draws its tensors, `mlm_providers`, `distillation_providers` and
`adversary_providers` hold the implementations, `measure` times one case in a `worker` process, and `run` is the
command. `kernel_profile` and `warmup` are separate commands: the one profiles kernels, the other compiles them in
advance.
"""
