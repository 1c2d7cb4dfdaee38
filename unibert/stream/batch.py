"""The batch that the model sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unibert.stream.sequences import NOT_MASKED, MaskedSequences


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B packed sequences of S tokens that hold D documents, of which N tokens are masked. Tensors are int64
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
    cu_seqlens: Tensor
    """Bounds of the documents in the flattened B * S tokens, from 0 to B * S; int32. Each sequence's padding counts as
    one document more."""
    max_seqlen: int
    """Of the stretches between the bounds."""
    masked_positions: Tensor
    """Flat positions b * S + s of the masked tokens, ascending, (N,)."""
    sequence_indices: Tensor
    """Run-wide, (B,)."""
    origins: list[list[str]]
    """For each sequence its documents as ``lang/train-000000.tar#document``."""

    @classmethod
    def from_sequences(cls, sequences: MaskedSequences, first: int, last: int) -> Batch:
        """Sequences ``first`` to ``last``, end excluded."""
        bounds = np.concatenate([[0], np.cumsum(sequences.documents_per_sequence)])[first : last + 1]
        lengths = sequences.document_lengths[bounds[0] : bounds[-1]]
        input_ids, labels = sequences.input_ids[first:last], sequences.labels[first:last]
        tokens_before = np.concatenate([[0], np.cumsum(lengths)])
        sequence_ends = bounds[1:] - bounds[0]
        padding = input_ids.shape[1] - np.diff(tokens_before[bounds - bounds[0]])
        stretches = np.insert(lengths, sequence_ends, padding)
        document_ids = np.repeat(np.insert(np.arange(len(lengths)), sequence_ends, -1), stretches)
        ends = np.cumsum(stretches)
        position_ids = np.arange(input_ids.size) - np.repeat(ends - stretches, stretches)
        position_ids[document_ids < 0] = 0
        ends = ends[stretches > 0]
        return cls(
            input_ids=torch.from_numpy(input_ids.astype(np.int64)),
            labels=torch.from_numpy(labels.astype(np.int64)),
            position_ids=torch.from_numpy(position_ids.reshape(input_ids.shape)),
            document_ids=torch.from_numpy(document_ids.reshape(input_ids.shape)),
            document_languages=torch.tensor(sequences.document_languages[bounds[0] : bounds[-1]]),
            cu_seqlens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
            max_seqlen=int(stretches.max()),
            masked_positions=torch.from_numpy(np.flatnonzero(labels != NOT_MASKED)),
            sequence_indices=torch.tensor(sequences.sequence_indices[first:last]),
            origins=[sequences.origins[start:end] for start, end in pairwise(bounds)],
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
