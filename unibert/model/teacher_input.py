"""What the teacher reads of a batch: with or without the student's masks, and with a prompt in every document."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from unibert.model.attention import PackedDocuments
from unibert.stream import Batch


@dataclass(frozen=True)
class Prompt:
    """Tokens that the teacher reads at the start of every document, behind the document's first frame tokens."""

    ids: tuple[int, ...]
    prefix: int
    """Number of frame tokens before the prompt."""
    pad: int


@dataclass(frozen=True)
class TeacherInput:
    """Packed sequences as the teacher reads them, (B, T), where T is S or, with a prompt, more."""

    input_ids: Tensor
    position_ids: Tensor
    documents: PackedDocuments
    places: Tensor | None
    """Place in the teacher's sequence of each token of the batch, (B, S); None if they are the same."""

    def at_batch_tokens(self, states: Tensor) -> Tensor:
        """Return the rows of (B, T, H) states that belong to the batch's own tokens, (B, S, H)."""
        if self.places is None:
            return states
        return states.gather(1, self.places[:, :, None].expand(-1, -1, states.shape[-1]))


def teacher_input(batch: Batch, documents: PackedDocuments, *, clean: bool, prompt: Prompt | None) -> TeacherInput:
    """Return the teacher's input.

    Args:
        batch: packed sequences, (B, S).
        documents: where its documents lie.
        clean: whether to show the original tokens at the masked positions.
        prompt: tokens to insert into every document, each piece of a cut document included.
    """
    input_ids = torch.where(batch.labels >= 0, batch.labels, batch.input_ids) if clean else batch.input_ids
    if prompt is None:
        return TeacherInput(input_ids, batch.position_ids, documents, None)
    inside = batch.document_ids >= 0
    starts = (batch.position_ids == 0) & inside
    behind_prompt = (batch.position_ids >= prompt.prefix) & inside
    count, length = len(prompt.ids), batch.input_ids.shape[1]
    # Earlier documents of the sequence have a prompt each; padding comes behind all of them.
    earlier = torch.arange(length, device=input_ids.device) + count * (starts.long().cumsum(1) - inside.long())
    places = earlier + count * behind_prompt.long()
    # Places of the prompts; tokens that begin no document write theirs behind the end.
    longer = length + count * max(len(origins) for origins in batch.origins)
    offsets = torch.arange(count, device=input_ids.device)
    prompt_places = torch.where(starts[:, :, None], earlier[:, :, None] + prompt.prefix + offsets, longer).flatten(1)
    prompt_ids = _on_device(prompt.ids, input_ids.device).repeat(length).expand(len(input_ids), -1)

    def spread(tokens: Tensor, prompts: Tensor, padding: int) -> Tensor:
        spread = tokens.new_full((len(tokens), longer + 1), padding)
        return spread.scatter_(1, prompt_places, prompts).scatter_(1, places, tokens)[:, :longer]

    document_ids = spread(batch.document_ids, batch.document_ids.repeat_interleave(count, dim=1), -1)
    moved = batch.position_ids + count * behind_prompt.long()
    positions = spread(moved, (prompt.prefix + offsets).repeat(length).expand(len(moved), -1), 0)
    longer_documents = PackedDocuments.from_counted_ids(document_ids, len(batch.document_languages))
    return TeacherInput(spread(input_ids, prompt_ids, prompt.pad), positions, longer_documents, places)


@cache
def _on_device(ids: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(ids, device=device)
