"""Encoder, heads, adversary, teacher and export, independent of training."""
