"""``unibert plan``: estimate memory, time and disk of a run before it starts.

`accelerators` has the data of GPUs and measured speeds, `estimate` computes, `table` is the command.
"""
