"""Checkpoints: `manager` writes, publishes and loads them; `claim` ensures that only one start does.

`folder` describes a complete checkpoint, `files` writes copies while training continues, `retention` decides what is
kept and estimates disk space, `universal` converts a checkpoint for another world size.
"""
