"""The embeddings of the tokens that occur, alone, so that an optimizer does not go through all others in every step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding


class UsedEmbeddings(nn.Module):
    """Embeddings of some ids of a vocabulary. It takes the ids of the whole vocabulary.

    Args:
        whole: embeddings of the whole vocabulary.
        used: (U,) int64, the ids that occur, in ascending order.
    """

    def __init__(self, whole: nn.Embedding, used: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(whole.weight.detach()[used].clone())
        rows = torch.zeros(whole.num_embeddings, dtype=torch.long, device=used.device)
        rows[used] = torch.arange(len(used), device=used.device)
        self.rows: Tensor
        self.register_buffer("rows", rows, persistent=False)
        padding = whole.padding_idx
        self._padding_row = int(rows[padding]) if padding is not None and padding in used else None

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of ids (B, S), (B, S, H)."""
        return embedding(self.rows[ids], self.weight, self._padding_row)


@contextmanager
def only_used_embeddings(encoder: Any, ids: Iterable[int]) -> Iterator[None]:
    """Let an encoder have the embeddings of these ids only, and write them back when the block ends.

    Training then gives the weights that it would give with all embeddings, bit for bit, if embeddings are not decayed:
    others have no gradient, so that Adam leaves them as they are. A vocabulary of 250,000 tokens, of which a task has
    20,000, costs most of a step otherwise.

    Args:
        encoder: transformers' model.
        ids: the ids that the encoder will see, in any order, repeated or not.
    """
    whole = encoder.get_input_embeddings()
    used = torch.tensor(sorted(set(ids)), device=whole.weight.device)
    few = UsedEmbeddings(whole, used)
    encoder.set_input_embeddings(few)
    try:
        yield
    finally:
        with torch.no_grad():
            whole.weight[used] = few.weight
        encoder.set_input_embeddings(whole)
