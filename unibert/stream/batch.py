"""The batch that the model sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unibert.stream.rows import NOT_MASKED, MaskedRows


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B packed rows of S tokens that hold D documents, of which N tokens are masked. Tensors are int64
    where nothing else is said."""

    input_ids: Tensor
    """(B, S)."""
    labels: Tensor
    """The masked positions' own tokens, -100 elsewhere, (B, S)."""
    position_ids: Tensor
    """From 0 with every document, 0 on padding, (B, S)."""
    document_ids: Tensor
    """Index into this batch's documents, -1 on padding, (B, S)."""
    document_languages: Tensor
    """Index into ``Stream.languages``, (D,)."""
    cumulative_lengths: Tensor
    """Bounds of the documents, and of each row's padding as if it were one more, in the flattened B * S tokens; int32,
    from 0 to B * S."""
    max_length: int
    """Of the stretches between the bounds."""
    masked_rows: Tensor
    """Flat positions b * S + s of the masked tokens, ascending, (N,)."""
    sequence_indices: Tensor
    """Run-wide, (B,)."""
    origins: list[list[str]]
    """For each row its documents as ``lang/train-000000.tar#document``."""

    @classmethod
    def from_rows(cls, rows: MaskedRows, first: int, last: int) -> Batch:
        """Rows ``first`` to ``last``, end excluded."""
        bounds = np.concatenate([[0], np.cumsum(rows.documents_per_row)])[first : last + 1]
        lengths = rows.document_lengths[bounds[0] : bounds[-1]]
        input_ids, labels = rows.input_ids[first:last], rows.labels[first:last]
        tokens_before = np.concatenate([[0], np.cumsum(lengths)])
        row_ends = bounds[1:] - bounds[0]
        padding = input_ids.shape[1] - np.diff(tokens_before[bounds - bounds[0]])
        stretches = np.insert(lengths, row_ends, padding)
        document_ids = np.repeat(np.insert(np.arange(len(lengths)), row_ends, -1), stretches)
        ends = np.cumsum(stretches)
        position_ids = np.arange(input_ids.size) - np.repeat(ends - stretches, stretches)
        position_ids[document_ids < 0] = 0
        ends = ends[stretches > 0]
        return cls(
            input_ids=torch.from_numpy(input_ids.astype(np.int64)),
            labels=torch.from_numpy(labels.astype(np.int64)),
            position_ids=torch.from_numpy(position_ids.reshape(input_ids.shape)),
            document_ids=torch.from_numpy(document_ids.reshape(input_ids.shape)),
            document_languages=torch.tensor(rows.document_languages[bounds[0] : bounds[-1]]),
            cumulative_lengths=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
            max_length=int(stretches.max()),
            masked_rows=torch.from_numpy(np.flatnonzero(labels != NOT_MASKED)),
            sequence_indices=torch.tensor(rows.sequence_indices[first:last]),
            origins=[rows.origins[start:end] for start, end in pairwise(bounds)],
        )

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on ``device``; copies from pinned memory do not block."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def digest(self) -> str:
        """SHA-256 (hex) of what the model learns from: inputs, labels, documents and languages."""
        content = hashlib.sha256()
        for tensor in (self.input_ids, self.labels, self.document_ids, self.document_languages):
            content.update(repr(tuple(tensor.shape)).encode() + tensor.cpu().numpy().tobytes())
        return content.hexdigest()
