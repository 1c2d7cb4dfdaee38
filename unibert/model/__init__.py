"""Encoder, heads, adversary, teacher and export; knows nothing of training."""
