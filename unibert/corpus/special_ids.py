"""Ids of a tokenizer that stand for no text: padding, mask, the frame of a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt


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

    def ordinary(self, vocab_size: int) -> npt.NDArray[np.int32]:
        """All other ids below ``vocab_size``, ascending, int32."""
        return np.setdiff1d(np.arange(vocab_size, dtype=np.int32), np.array(self.special, dtype=np.int32))

    @cached_property
    def num_leading(self) -> int | None:
        """k if the special ids are exactly 0 to k - 1, else None; tests and draws are then simpler."""
        return len(self.special) if self.special[-1] == len(self.special) - 1 else None


OWN_SPECIAL_IDS = SpecialIds(pad=0, mask=4, prefix=(2,), suffix=(3,), special=(0, 1, 2, 3, 4))
"""Those of the SentencePiece models that ``unibert corpus build`` trains."""
