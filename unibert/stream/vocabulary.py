"""The vocabulary of a corpus as the stream sees it: which ids are ordinary, and how documents are framed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from unibert.corpus.manifest import Manifest
from unibert.corpus.special_ids import SpecialIds


@dataclass(frozen=True)
class Vocabulary:
    """Ids from 0 to ``size - 1``. Those that are not special are ordinary: they may be masked and drawn."""

    size: int
    special_ids: SpecialIds

    @classmethod
    def of_corpus(cls, manifest: Manifest) -> Vocabulary:
        """Return the vocabulary that the corpus was tokenized with."""
        return cls(manifest.vocab_size, manifest.special_ids)

    @cached_property
    def ordinary_ids(self) -> npt.NDArray[np.int32]:
        """Ordinary ids, ascending."""
        return np.flatnonzero(self._is_ordinary).astype(np.int32)

    def is_ordinary(self, ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        """Return whether each id is ordinary."""
        # One comparison is faster than a look-up in a table, and special ids often come first.
        if self._specials_come_first:
            return ids >= len(self.special_ids.special)
        return self._is_ordinary[ids]

    @cached_property
    def _specials_come_first(self) -> bool:
        return self.special_ids.special == tuple(range(len(self.special_ids.special)))

    @cached_property
    def _is_ordinary(self) -> npt.NDArray[np.bool_]:
        ordinary = np.ones(self.size, dtype=bool)
        ordinary[list(self.special_ids.special)] = False
        return ordinary
