"""A batch: the tensors of packed sequences that the model reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unibert.stream.sequences import NOT_MASKED, MaskedSequences


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B packed sequences of S tokens with D documents; N tokens are masked. Tensors are int64 unless a field says
    otherwise."""

    input_ids: Tensor
    """Token ids, masks applied, (B, S)."""
    labels: Tensor
    """Original tokens at the masked positions, -100 elsewhere, (B, S)."""
    position_ids: Tensor
    """Position within the document, from 0; 0 on padding, (B, S)."""
    document_ids: Tensor
    """Index of the document within this batch, -1 on padding, (B, S)."""
    document_languages: Tensor
    """Index of each document's language in ``Stream.languages``, (D,)."""
    cu_seqlens: Tensor
    """Bounds of the documents in the flattened B * S tokens, from 0 to B * S, int32. The padding of a sequence counts
    as one more document."""
    max_seqlen: int
    """Largest distance between two neighbouring ``cu_seqlens``."""
    masked_positions: Tensor
    """Flat positions b * S + s of the masked tokens, ascending, (N,)."""
    sequence_indices: Tensor
    """Index of each sequence in the run, (B,)."""
    document_spans: list[tuple[int, int]]
    """First token and end of each document in the flattened B * S tokens, D pairs; on the host, as ``origins``."""
    origins: list[list[str]]
    """Documents of each sequence as ``lang/train-000000.tar#document``."""
    document_vectors: Tensor | None = None
    """Mean vector of each document in a teacher that read it, (D, H) float16, NaN if none did; None unless the run
    reads vectors from its corpus."""

    @classmethod
    def from_sequences(cls, sequences: MaskedSequences, first: int, last: int) -> Batch:
        """Build a batch of sequences ``first`` to ``last``, end excluded."""
        bounds = np.concatenate([[0], np.cumsum(sequences.documents_per_sequence)])[first : last + 1]
        lengths = sequences.document_lengths[bounds[0] : bounds[-1]]
        input_ids, labels = sequences.input_ids[first:last], sequences.labels[first:last]
        tokens_before = np.concatenate([[0], np.cumsum(lengths)])
        sequence_ends = bounds[1:] - bounds[0]
        padding = input_ids.shape[1] - np.diff(tokens_before[bounds - bounds[0]])
        segment_lengths = np.insert(lengths, sequence_ends, padding)
        document_ids = np.repeat(np.insert(np.arange(len(lengths)), sequence_ends, -1), segment_lengths)
        ends = np.cumsum(segment_lengths)
        position_ids = np.arange(input_ids.size) - np.repeat(ends - segment_lengths, segment_lengths)
        position_ids[document_ids < 0] = 0
        ends = ends[segment_lengths > 0]
        return cls(
            input_ids=torch.from_numpy(input_ids.astype(np.int64)),
            labels=torch.from_numpy(labels.astype(np.int64)),
            position_ids=torch.from_numpy(position_ids.reshape(input_ids.shape)),
            document_ids=torch.from_numpy(document_ids.reshape(input_ids.shape)),
            document_languages=torch.tensor(sequences.document_languages[bounds[0] : bounds[-1]]),
            cu_seqlens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
            max_seqlen=int(segment_lengths.max()),
            masked_positions=torch.from_numpy(np.flatnonzero(labels != NOT_MASKED)),
            sequence_indices=torch.tensor(sequences.sequence_indices[first:last]),
            document_spans=document_spans(document_ids),
            origins=[sequences.origins[start:end] for start, end in pairwise(bounds)],
            document_vectors=None
            if sequences.document_vectors is None
            else torch.tensor(sequences.document_vectors[bounds[0] : bounds[-1]]),
        )

    @property
    def taught(self) -> Tensor:
        """Whether a teacher has read, or will read, each document as it stands here, (D,) bool."""
        if self.document_vectors is None:
            return torch.ones_like(self.document_languages, dtype=torch.bool)
        return ~self.document_vectors[:, 0].isnan()

    def pinned(self) -> Batch:
        """Return the batch in pinned memory, from which copies to a GPU do not block."""
        return self._with_tensors(Tensor.pin_memory)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on ``device``; copies from pinned memory do not block."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of what the model learns from: inputs, labels, documents, languages, vectors."""
        content = hashlib.sha256()
        tensors = [self.input_ids, self.labels, self.document_ids, self.document_languages]
        for tensor in tensors if self.document_vectors is None else [*tensors, self.document_vectors]:
            content.update(repr(tuple(tensor.shape)).encode() + tensor.cpu().numpy().tobytes())
        return content.hexdigest()


def document_spans(document_ids: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return first token and end of each document in the flattened array, whose ids are -1 on padding."""
    flat = document_ids.ravel()
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [len(flat)]])
    return [(first, end) for first, end in pairwise(bounds.tolist()) if flat[first] >= 0]
