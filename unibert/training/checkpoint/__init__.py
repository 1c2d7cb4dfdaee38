"""Checkpoints: `manager` writes, publishes and loads them, `claim` makes sure that one start alone does.

`files` writes copies while the run goes on, `retention` says what is kept and what room that takes, `universal` brings
a checkpoint to another world size.
"""
