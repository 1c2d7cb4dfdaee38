"""Ids of a tokenizer that stand for no text: padding, mask, and the frame of a document.

The module imports only the standard library, as the manifest does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Special ids of a tokenizer. They come from the tokenizer and stand in the corpus's manifest.

    Raises:
        ValueError: if ids are missing, negative, or not listed among ``special``.
    """

    pad: int
    mask: int
    prefix: tuple[int, ...]
    """Ids that begin every document."""
    suffix: tuple[int, ...]
    """Ids that end every document."""
    special: tuple[int, ...]
    """All ids that are never masked and never drawn as random replacements, ascending."""

    def __post_init__(self) -> None:
        if not self.prefix and not self.suffix:
            raise ValueError("prefix and suffix are empty, so that documents would run into each other")
        named = {self.pad, self.mask, *self.prefix, *self.suffix}
        if list(self.special) != sorted(set(self.special)) or not named <= set(self.special):
            raise ValueError("special must list all special ids once, ascending")
        if self.special[0] < 0:
            raise ValueError(f"ids must not be negative, got {self.special[0]}")

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Read the JSON object that ``dataclasses.asdict`` gives. Raises ValueError or TypeError if it is malformed."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = content[field.name]
            ids = value if isinstance(value, list | tuple) else [value]
            if any(type(one) is not int for one in ids):
                raise TypeError(f"special_ids.{field.name} must hold integers")
            values[field.name] = value if field.name in ("pad", "mask") else tuple(ids)
        return cls(**values)

    @property
    def frame_tokens(self) -> int:
        """Number of ids that frame a document."""
        return len(self.prefix) + len(self.suffix)


OWN_SPECIAL_IDS = SpecialIds(pad=0, mask=4, prefix=(2,), suffix=(3,), special=(0, 1, 2, 3, 4))
"""Special ids of the SentencePiece models that ``unibert corpus build`` trains."""
