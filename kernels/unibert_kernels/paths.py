"""The implementations that a caller may ask for."""

from __future__ import annotations

PATHS = ("auto", "chunked")
"""``auto`` takes the fastest implementation for the tensors' device; ``chunked`` is plain torch, on any device."""


def check_path(path: str) -> None:
    """Raise ValueError unless ``path`` is one of `PATHS`."""
    if path not in PATHS:
        raise ValueError(f"path: must be one of {', '.join(PATHS)}, got {path!r}")
