"""Models named by their id on the Hugging Face hub instead of a folder."""

from __future__ import annotations

import re
from pathlib import Path

_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def is_on_hub(name: str | Path) -> bool:
    """Return whether ``name`` is no folder here and has the form of a hub id, as ``intfloat/multilingual-e5-small``."""
    return not Path(name).exists() and _ID.fullmatch(str(name)) is not None


def not_found(name: str | Path, reason: str) -> str:
    """Return the sentence on a hub id that cannot be resolved."""
    return (
        f"{name} is neither a folder nor a model that the Hugging Face hub gives ({reason}); without network, fetch it "
        f"elsewhere (hf download {name} --local-dir FOLDER) and name that folder"
    )
