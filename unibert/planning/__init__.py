"""``unibert plan``: the memory, time and disk that a run will need, before it is started.

`accelerators` holds what is known of GPUs, `estimate` computes, `table` is the command.
"""
